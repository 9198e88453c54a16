"""From a seed to one attempt on the model room: a random operation, a mutated program, or mutated bytes."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from ravnest_p2p.core.errors import PackageError
from ravnest_p2p.model import Limits, Package, Program, ops
from ravnest_p2p.model.abstract import fake_leaf, fake_mode
from ravnest_p2p.model.execute import call
from ravnest_p2p.model.guards import guard
from ravnest_p2p.model.parse import _leaves, _node
from ravnest_p2p.model.schema import check_node
from tests.fuzz.arguments import EDGES, FLOATS, WHOLE, Arguments
from tests.fuzz.draft import Draft
from tests.fuzz.execute import execute
from tests.unit.test_model_stages import captured

FAMILIES = ("mlp", "cnn", "residual", "gpt", "gpt_manual", "gpt_tied")
LIMITS = Limits(tensor_bytes=16 << 20, total_bytes=128 << 20, flops=1e9)
"""What one core of a PC does in well under five seconds and a gigabyte."""

Say = Callable[[bytes], None]
NAMES = sorted(ops.ALLOWED_OPS)
DRAWS = 8
"""Attempts to find arguments that the operation takes."""


@cache
def document(family: str) -> dict[str, Any]:
    return json.loads(captured(family)[1].program.to_json())  # type: ignore[no-any-return]


@cache
def weights_bytes(folder: Path, family: str) -> bytes:
    _, (file,) = captured(family)[1].write(folder)
    return file.path.read_bytes()


def run_case(seed: int, folder: Path, say: Say) -> str:
    """One attempt; returns what became of it.

    Args:
        say: told the program's bytes before they are read.
    Returns:
        "unbuilt" (no program came about), "refused", "failed" (an operation raised), or "ran".
    """
    random = Random(seed)
    choice = seed % 10
    if choice < 6:
        return _operation(random, NAMES[(seed // 10 * 6 + choice) % len(NAMES)], say)
    if choice < 9:
        return _attempt(_mutated_program(random), random, say)
    return _bytes(random, folder, say)


def _attempt(data: bytes, random: Random, say: Say) -> str:
    say(data)
    try:
        program = Program.from_json(data, LIMITS)
    except PackageError:
        return "refused"
    try:
        execute(program, random)
    except Exception:
        return "failed"
    return "ran"


def _operation(random: Random, op: str, say: Say) -> str:
    for _ in range(DRAWS):
        draft = Draft()
        try:
            results = _add(draft, op, random)
            break
        except Exception:
            continue
    else:
        return "unbuilt"
    for name in random.sample(NAMES, random.choice((0, 0, 1, 2))):
        with suppress(Exception):
            results += _add(draft, name, random)
    return _attempt(draft.finish(results).to_json(), random, say)


def _add(draft: Draft, op: str, random: Random) -> list[int]:
    args, kwargs = Arguments(random, draft, op).draw()
    return draft.add(op, args, kwargs, random.random() < 0.05)


def _mutated_program(random: Random) -> bytes:
    changed = copy.deepcopy(document(random.choice(FAMILIES)))
    for _ in range(random.choice((1, 1, 2, 4))):
        change = random.choice((_change_value, _change_value, _change_node, _change_node, _change_leaf))
        # An earlier change may have left nothing of the form that this one works on.
        with suppress(TypeError, KeyError, IndexError, AttributeError, ValueError):
            change(changed, random)
    if random.random() < 0.8:
        _declare_anew(changed)
    return json.dumps(changed).encode()


def _places(value: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found.append((value, key))
        found += _places(item)
    return found


def _junk(random: Random) -> Any:
    return random.choice(
        (
            random.choice(EDGES),
            random.randint(-3, 40),
            {"slot": random.randint(0, 60)},
            None,
            True,
            random.random() * 10,
            {"float": random.choice(("inf", "-inf", "nan"))},
            {"dtype": random.choice((*FLOATS, *WHOLE))},
            [random.randint(-2, 9) for _ in range(random.randint(0, 4))],
            random.choice(sorted(ops.STRINGS)),
            [],
            {},
            2**70,
        )
    )


def _change_value(changed: dict[str, Any], random: Random) -> None:
    holder, key = random.choice(_places(changed))
    if isinstance(holder[key], int) and random.random() < 0.5:
        holder[key] += random.choice((-1, 1, 2))
    elif isinstance(holder, list) and random.random() < 0.3:
        holder.insert(key, _junk(random))
    else:
        holder[key] = _junk(random)


def _change_node(changed: dict[str, Any], random: Random) -> None:
    nodes = changed["nodes"]
    place = random.randrange(len(nodes))
    match random.randrange(5):
        case 0:
            nodes[place][0] = random.choice(NAMES)
        case 1:
            nodes.insert(place, copy.deepcopy(random.choice(nodes)))
        case 2:
            del nodes[place]
        case 3:
            references = [r for r in _places(nodes[place]) if r[1] == "slot"]
            if references:
                holder, key = random.choice(references)
                holder[key] = random.randrange(60)
        case 4:
            arguments = nodes[place][1]
            if arguments:
                arguments[random.randrange(len(arguments))] = _junk(random)
    changed["layers"] = [len(nodes)]


def _change_leaf(changed: dict[str, Any], random: Random) -> None:
    leaf = random.choice(changed[random.choice(("inputs", "params"))])
    if random.random() < 0.4:
        leaf[2] = random.choice((*FLOATS, *WHOLE))
    elif leaf[1]:
        leaf[1][random.randrange(len(leaf[1]))] = random.choice((0, 1, 2, 3, 8, 16, 64))


def _declare_anew(changed: dict[str, Any]) -> None:
    """Declare what the nodes now make, as far as they make anything."""
    try:
        leaves = [leaf for group, kinds in _GROUPS for leaf in _leaves(changed[group], kinds, LIMITS)]
        with fake_mode():
            values = [fake_leaf(leaf) for leaf in leaves]
            for item in changed["nodes"]:
                node = _node(item, len(values))
                check_node(node)
                guard(node, values.__getitem__)
                results = call(node, values.__getitem__)
                item[3] = [[list(r.shape), ops.dtype_name(r.dtype)] for r in results]
                values.extend(results)
    except Exception:
        return


_GROUPS = (("inputs", {"input"}), ("params", {"param"}), ("buffers", {"buffer", "frozen"}))


def _bytes(random: Random, folder: Path, say: Say) -> str:
    """Bytes of a program or of its weights, changed at random."""
    family = random.choice(FAMILIES)
    program, weights = json.dumps(document(family)).encode(), weights_bytes(folder, family)
    if random.random() < 0.5:
        return _attempt(_scrambled(program, random), random, say)
    header = 8 + int.from_bytes(weights[:8], "little")
    if random.random() < 0.7:
        weights = _scrambled(weights[:header], random) + weights[header:]
    else:
        weights = _scrambled(weights, random)
    (folder / "changed.json").write_bytes(program)
    (folder / "changed.safetensors").write_bytes(weights)
    say(weights[:4096])
    try:
        package = Package.from_files(folder / "changed.json", [folder / "changed.safetensors"])
    except PackageError:
        return "refused"
    sum(float(tensor.double().sum()) for tensor in package.weights.values())
    return "ran"


def _scrambled(data: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 5))):
        place = random.randrange(len(changed) or 1)
        match random.randrange(6):
            case 0:
                changed[place : place + 1] = bytes([random.randrange(256)])
            case 1:
                del changed[place : place + random.choice((1, 2, 8, 100))]
            case 2:
                changed[place:place] = bytes(random.randrange(256) for _ in range(random.choice((1, 4))))
            case 3:
                changed[place:place] = changed[place : place + random.randrange(1, 40)]
            case 4:
                del changed[place:]
            case 5:
                changed[place : place + 1] = random.choice((b"0", b"9", b"-", b"[", b"}", b'"', b",", b"e"))
    return bytes(changed)
