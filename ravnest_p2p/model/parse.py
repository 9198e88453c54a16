"""Read a program from hostile bytes.

Problem: whoever submits a job writes these bytes, and every peer of the job reads them. Solution: three
walls, each of which stops at the first fault. The text: size, depth, duplicate keys and non-numbers are
refused by the JSON reader. The form: known keys only, bounded numbers, references to earlier slots only,
allowed operations only, arguments that fit ATen's schema. The meaning: an abstract run on fake tensors
proves all declared shapes and counts the bytes, so nothing is allocated for a program that lies.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ravnest_p2p.core.errors import PackageError
from ravnest_p2p.core.strict_json import strict_json
from ravnest_p2p.core.types import MICROBATCH_FLOPS
from ravnest_p2p.model import abstract, ops
from ravnest_p2p.model.cut import check_bounds
from ravnest_p2p.model.node import Arg, Leaf, Node, Ref, TensorSpec
from ravnest_p2p.model.program import FORMAT, Graph, Program
from ravnest_p2p.model.schema import MAX_LIST, check_node
from ravnest_p2p.model.stranger import read_ordinary

_KEYS = {"format", "inputs", "params", "buffers", "nodes", "output", "layers", "tied", "transient"}
_MAX_NAME = 512
_UNSAFE_NAME = re.compile(r"\.\.|\\|^[/~]|^__metadata__$")
_FIELD = re.compile(r"[xy](0|[1-9][0-9]{0,3})")
_MAX_RANK = 12
_MAX_SIZE = 1 << 48
_MAX_NESTING = 3

Leaves = tuple[Leaf, ...]
_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes of a program that a peer accepts.

    Attributes:
        items: lists, objects and items of the JSON text, weights' headers included.
        slots: leaves and results.
        tensor_bytes: of any one tensor.
        total_bytes: of all tensors of one micro-batch together, on all stages.
        flops: of forward and backward of one micro-batch, on all stages.
    """

    json_bytes: int = 16 << 20
    items: int = 1_000_000
    leaves: int = 30_000
    nodes: int = 30_000
    slots: int = 40_000
    tensor_bytes: int = abstract.DEFAULT_TENSOR_BYTES
    total_bytes: int = abstract.DEFAULT_TOTAL_BYTES
    flops: float = MICROBATCH_FLOPS


def parse_program(data: bytes, limits: Limits | None = None) -> Program:
    """See `Program.from_json`."""
    bounded = limits or Limits()

    def read(document: Any) -> Program:
        program = _program(document, bounded)
        analyse_within(program, bounded)
        _check_loss(program)
        check_bounds(program)
        return program

    return parse(data, bounded, "program", read)


def parse(data: bytes, limits: Limits, what: str, read: Callable[[Any], _Read]) -> _Read:
    """Bytes through the first wall, and then through those of `read`.

    Args:
        read: makes something of the JSON document; ValueError, KeyError and TypeError are its refusals.
    Raises:
        PackageError: the bytes are refused (remote's fault).
    """
    if len(data) > limits.json_bytes:
        raise PackageError(f"the {what} has {len(data)} bytes, over the limit of {limits.json_bytes}")
    try:
        document = strict_json(data, limits.items)
    except ValueError as error:
        raise PackageError(f"the {what} is not valid JSON: {_brief(error)}") from error
    try:
        return read(document)
    except (ValueError, KeyError, TypeError) as error:
        raise PackageError(f"the {what} is refused: {_brief(error)}") from error


def read_program(path: str | os.PathLike[str], limits: Limits | None = None) -> Program:
    """Program in a file from a stranger.

    Raises:
        PackageError: the file is refused, or the program in it (remote's fault).
    """
    limits = limits or Limits()
    return parse_program(read_ordinary(path, limits.json_bytes), limits)


def _brief(error: BaseException) -> str:
    return (str(error) or type(error).__name__)[:400]


def need(condition: bool, message: str) -> None:
    """Refuse, with a ValueError of this message, what does not hold."""
    if not condition:
        raise ValueError(message)


def items_of(value: Any, limit: int, what: str) -> list[Any]:
    """A list of at most so many items."""
    need(isinstance(value, list), f"{what} is not a list")
    need(len(value) <= limit, f"{what} has {len(value)} items, over the limit of {limit}")
    return value  # type: ignore[no-any-return]


def whole_of(value: Any, lo: int, hi: int, what: str) -> int:
    """A whole number in [lo, hi)."""
    need(type(value) is int and lo <= value < hi, f"{what} is not a whole number in [{lo}, {hi})")
    return value  # type: ignore[no-any-return]


def name_of(value: Any) -> str:
    """A state_dict name that is also harmless as a part of a path, a line, or a safetensors header."""
    sound = isinstance(value, str) and 0 < len(value) <= _MAX_NAME and value.isprintable()
    need(sound and not _UNSAFE_NAME.search(value), "a name is malformed")
    return value  # type: ignore[no-any-return]


def check_form(document: Any, keys: set[str], form: str) -> None:
    """Refuse a document with other keys, or of another format."""
    need(isinstance(document, dict) and document.keys() == keys, f"keys are not {sorted(keys)}")
    need(document["format"] == form, f"format is not {form}")


def read_parts(
    document: dict[str, Any], params: set[str], buffers: set[str], limits: Limits
) -> tuple[Leaves, Leaves, Leaves, tuple[Node, ...], int]:
    """Inputs, params, buffers and nodes of a document, and the number of slots.

    Args:
        params, buffers: kinds of leaves that may stand there.
    """
    fields = _leaves(document["inputs"], {"input"}, limits)
    owned = _leaves(document["params"], params, limits)
    others = _leaves(document["buffers"], buffers, limits)
    leaves = fields + owned + others
    names = [leaf.name for leaf in leaves]
    need(len(set(names)) == len(names), "a name stands twice among inputs, parameters and buffers")
    for leaf in fields:
        need(_FIELD.fullmatch(leaf.name) is not None, f"input {leaf.name!r} is not x0, … or y0, …")
    for leaf in owned + others:
        floating = leaf.kind != "param" or ops.DTYPES[leaf.dtype].is_floating_point
        need(floating, f"parameter {leaf.name!r} is not of a floating dtype")
    nodes, count = _nodes(document["nodes"], leaves, limits)
    return fields, owned, others, nodes, count


def analyse_within(graph: Graph, limits: Limits) -> None:
    """Let the graph through the third wall, and keep what was found."""
    budget = abstract.Budget(limits.tensor_bytes, limits.total_bytes, limits.flops)
    graph.__dict__["analysis"] = abstract.analyse(graph, budget)


def _program(document: Any, limits: Limits) -> Program:
    check_form(document, _KEYS, FORMAT)
    inputs, params, buffers, nodes, count = read_parts(document, {"param"}, {"buffer", "frozen"}, limits)
    held = {leaf.name for leaf in params + buffers}
    tied = tuple(
        tuple(name_of(n) for n in items_of(group, limits.leaves, "a tied group"))
        for group in items_of(document["tied"], limits.leaves, "tied")
    )
    flat = [name for group in tied for name in group]
    need(len(set(flat)) == len(flat), "a name is tied twice")
    need(all(len(g) > 1 and g[0] in held and not held & set(g[1:]) for g in tied), "a tied group is wrong")
    transient = tuple(name_of(n) for n in items_of(document["transient"], limits.leaves, "transient"))
    need({leaf.name for leaf in buffers} >= set(transient), "a transient name is not a buffer")
    bounds = tuple(
        whole_of(b, 1, len(nodes) + 1, "a layer bound")
        for b in items_of(document["layers"], limits.nodes, "layers")
    )
    output = whole_of(document["output"], 0, count, "output")
    return Program(inputs, params, buffers, nodes, output, bounds, tied, transient)


def _leaves(value: Any, kinds: set[str], limits: Limits) -> tuple[Leaf, ...]:
    leaves = []
    for item in items_of(value, limits.leaves, "a list of tensors"):
        need(isinstance(item, list) and len(item) == 4, "a tensor is not [name, shape, dtype, kind]")
        name, kind = name_of(item[0]), item[3]
        need(isinstance(kind, str) and kind in kinds, f"kind of {name!r} is not one of {sorted(kinds)}")
        spec = _spec(item[1], item[2])
        leaves.append(Leaf(name, spec.shape, spec.dtype, kind))
    return tuple(leaves)


def _spec(shape: Any, dtype: Any) -> TensorSpec:
    sizes = tuple(whole_of(n, 0, _MAX_SIZE, "a size") for n in items_of(shape, _MAX_RANK, "a shape"))
    need(isinstance(dtype, str) and dtype in ops.DTYPES, "a dtype is unknown")
    # A size of 0 must not hide sizes whose strides overflow.
    need(math.prod(max(1, n) for n in sizes) < _MAX_SIZE, "a tensor is too large")
    return TensorSpec(sizes, dtype)


def _nodes(value: Any, leaves: tuple[Leaf, ...], limits: Limits) -> tuple[tuple[Node, ...], int]:
    nodes: list[Node] = []
    count = len(leaves)
    writable = {slot for slot, leaf in enumerate(leaves) if leaf.kind == "buffer"}
    for index, item in enumerate(items_of(value, limits.nodes, "nodes")):
        try:
            node = _node(item, count)
            check_node(node)
            need(set(node.mutated()) <= writable, "it writes to something that is not a buffer")
            need(bool(node.outputs) != (node.op in ops.MUTATING_OPS), "it defines no slot")
            need(node.op not in ops.MUTATING_OPS or len(node.mutated()) == 1, "it writes to nothing")
        except KeyError as error:
            raise ValueError(f"node {index}: operation {_brief(error)} is not allowed") from error
        except ValueError as error:
            raise ValueError(f"node {index}: {error}") from error
        nodes.append(node)
        count += len(node.outputs)
        need(count <= limits.slots, f"more than {limits.slots} tensors")
    return tuple(nodes), count


def _node(item: Any, slots: int) -> Node:
    need(isinstance(item, list) and len(item) == 5, "a node is not [op, args, kwargs, outputs, no_grad]")
    op, args, kwargs, outputs, no_grad = item
    need(isinstance(op, str) and len(op) < 100, "an operation is not a name")
    need(isinstance(kwargs, dict) and len(kwargs) < 32, "keyword arguments are not an object")
    need(isinstance(no_grad, bool), "no_grad is not a truth value")
    packed = _arg(args, slots, 0)
    need(isinstance(packed, tuple), "arguments are not a list")
    named = tuple((name, _arg(kwargs[name], slots, 1)) for name in sorted(kwargs))
    specs = []
    for spec in items_of(outputs, MAX_LIST, "outputs"):
        need(isinstance(spec, list) and len(spec) == 2, "a result is not [shape, dtype]")
        specs.append(_spec(*spec))
    return Node(op, packed, named, tuple(specs), no_grad)  # type: ignore[arg-type]


def _arg(value: Any, slots: int, depth: int) -> Arg:
    if isinstance(value, list):
        need(depth < _MAX_NESTING, "arguments are nested too deeply")
        return tuple(_arg(item, slots, depth + 1) for item in items_of(value, MAX_LIST, "an argument"))
    if isinstance(value, dict):
        need(len(value) == 1, "an argument object has not exactly one key")
        ((tag, content),) = value.items()
        reader = _TAGS.get(tag)
        need(reader is not None, f"argument kind {tag[:20]!r} is unknown")
        return reader(content, slots)  # type: ignore[misc]
    if isinstance(value, float):
        need(math.isfinite(value), "a number is out of range")
    return value  # type: ignore[no-any-return]


def _choice(table: dict[str, Any]) -> Callable[[Any, int], Arg]:
    def read(content: Any, slots: int) -> Arg:
        need(isinstance(content, str) and content in table, "an argument names an unknown value")
        return table[content]  # type: ignore[no-any-return]

    return read


_TAGS: dict[str, Callable[[Any, int], Arg]] = {
    "slot": lambda content, slots: Ref(whole_of(content, 0, slots, "a reference")),
    "dtype": _choice(ops.DTYPES),
    "memory_format": _choice(ops.MEMORY_FORMATS),
    "float": _choice({"inf": math.inf, "-inf": -math.inf, "nan": math.nan}),
}


def _check_loss(program: Program) -> None:
    spec = program.analysis.specs[program.output]
    need(spec.shape == () and spec.torch_dtype.is_floating_point, "the output is not a scalar loss")
    need(spec.differentiable, "the loss does not depend on any parameter")
