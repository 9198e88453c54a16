"""Find the equal blocks of a model.

Problem: a transformer of 32 blocks has some 300 layers, of which people want to read ten lines, and of which
measuring ten is enough. Solution: layers of the same operations on the same shapes have the same signature,
and runs of signatures that repeat are one group.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from ravnest_p2p.model.node import Arg, Ref
from ravnest_p2p.model.program import Program

_NUMBER = re.compile(r"^\d+$")
_BLOCK = re.compile(r"(?:[^.]+\.)+?\d+\.(?=.)")


@dataclass(frozen=True, slots=True)
class Group:
    """`repeats` blocks of `length` layers each, all alike; layers [lo, lo + length · repeats).

    Attributes:
        name: what its parameters' names share, such as "blocks.0–11"; "" where they share nothing.
    """

    lo: int
    length: int
    repeats: int
    name: str

    @property
    def hi(self) -> int:
        return self.lo + self.length * self.repeats


def signatures(program: Program) -> tuple[int, ...]:
    """A number for every layer; equal for layers of equal operations, shapes and settings."""
    numbers: dict[object, int] = {}
    found = []
    lo = 0
    for hi in program.layer_bounds:
        key = tuple(_node_key(program, index) for index in range(lo, hi))
        found.append(numbers.setdefault(key, len(numbers)))
        lo = hi
    return tuple(found)


def groups(program: Program) -> tuple[Group, ...]:
    """The model's layers as groups of equal blocks, in order, without a gap."""
    marks, names = signatures(program), layer_names(program)
    found: list[Group] = []
    at = 0
    while at < len(marks):
        length, repeats = _repeating(marks, at)
        before = found[-1] if found else None
        if repeats == 1 and before is not None and before.repeats == 1 and _same_block(names, at):
            found[-1] = Group(before.lo, before.length + 1, 1, span_name(names, before.lo, at + 1))
        else:
            found.append(Group(at, length, repeats, span_name(names, at, at + length * repeats)))
        at += length * repeats
    return tuple(found)


def layer_names(program: Program) -> tuple[tuple[str, ...], ...]:
    """For every layer the modules whose parameters it uses, such as ("blocks.0.mlp.up",).

    Of a tied parameter the first layer has the first name, the layers after it the last.
    """
    inputs = len(program.inputs)
    again = {group[0]: group[-1] for group in program.tied}
    first_use = program.cut_map.first_use
    held = range(inputs, inputs + len(program.params))
    found = []
    lo = 0
    for hi in program.layer_bounds:
        slots = [slot for node in program.nodes[lo:hi] for slot in node.refs() if slot in held]
        named = [(program.leaves[slot].name, first_use[slot] < lo) for slot in slots]
        full = [again.get(name, name) if later else name for name, later in named]
        names = [name.rpartition(".")[0] or name for name in full]
        found.append(tuple(dict.fromkeys(names)))
        lo = hi
    return tuple(found)


def span_name(names: Sequence[tuple[str, ...]], lo: int, hi: int) -> str:
    """What the modules of layers [lo, hi) share; numbers that differ become a span."""
    paths = [name.split(".") for layer in names[lo:hi] for name in layer if name]
    if not paths:
        return ""
    shared = [first for first, *_ in takewhile(lambda c: len(set(c)) == 1, zip(*paths, strict=False))]
    following = [path[len(shared)] for path in paths if len(path) > len(shared)]
    if len(following) == len(paths) and all(map(_NUMBER.match, following)):
        numbers = sorted(set(map(int, following)))
        return ".".join([*shared, f"{numbers[0]}–{numbers[-1]}"])
    if shared:
        return ".".join(shared)
    tops = list(dict.fromkeys(".".join(path[:2] if path[1:] else path) for path in paths))
    return tops[0] if len(tops) == 1 else f"{tops[0]} … {tops[-1]}"


def _same_block(names: Sequence[tuple[str, ...]], at: int) -> bool:
    """Whether a layer is of the same numbered block as the one before it."""
    before, here = (_BLOCK.match(".".join((*names[n], ""))) for n in (at - 1, at))
    return before is not None and here is not None and before[0] == here[0]


def _repeating(marks: Sequence[int], at: int) -> tuple[int, int]:
    """(length, repeats) of the run from here that covers most; the shortest length among equals."""
    best = (1, 1)
    for length in range(1, (len(marks) - at) // 2 + 1):
        block = marks[at : at + length]
        repeats = 1
        while marks[at + repeats * length : at + (repeats + 1) * length] == block:
            repeats += 1
        if repeats > 1 and repeats * length > best[0] * best[1]:
            best = (length, repeats)
    return best


def _node_key(program: Program, index: int) -> tuple[object, ...]:
    node = program.nodes[index]
    leaves, specs = len(program.leaves), program.analysis.specs

    def key(value: Arg) -> object:
        if isinstance(value, Ref):
            kind = program.leaves[value.slot].kind if value.slot < leaves else ""
            return (kind, specs[value.slot])
        if isinstance(value, tuple):
            return tuple(key(item) for item in value)
        return (type(value), str(value))

    named = tuple((name, key(value)) for name, value in node.kwargs)
    return (node.op, key(node.args), named, node.outputs, node.no_grad)
