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
from typing import Any

from ravnest_p2p.core.errors import PackageError
from ravnest_p2p.core.strict_json import strict_json
from ravnest_p2p.core.types import MICROBATCH_FLOPS
from ravnest_p2p.model import abstract, ops
from ravnest_p2p.model.cut import check_bounds
from ravnest_p2p.model.program import FORMAT, Arg, Leaf, Node, Program, Ref, TensorSpec
from ravnest_p2p.model.schema import MAX_LIST, check_node
from ravnest_p2p.model.stranger import read_ordinary

_KEYS = {"format", "inputs", "params", "buffers", "nodes", "output", "layers", "tied", "transient"}
_MAX_NAME = 512
_UNSAFE_NAME = re.compile(r"\.\.|\\|^[/~]|^__metadata__$")
_FIELD = re.compile(r"[xy](0|[1-9][0-9]{0,3})")
_MAX_RANK = 12
_MAX_SIZE = 1 << 48
_MAX_NESTING = 3


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
    limits = limits or Limits()
    if len(data) > limits.json_bytes:
        raise PackageError(f"the program has {len(data)} bytes, over the limit of {limits.json_bytes}")
    try:
        document = strict_json(data, limits.items)
    except ValueError as error:
        raise PackageError(f"the program is not valid JSON: {_brief(error)}") from error
    try:
        program = _read(document, limits)
        budget = abstract.Budget(limits.tensor_bytes, limits.total_bytes, limits.flops)
        program.__dict__["analysis"] = abstract.analyse(program, budget)
        _check_loss(program)
        check_bounds(program)
    except (ValueError, KeyError, TypeError) as error:
        raise PackageError(f"the program is refused: {_brief(error)}") from error
    return program


def read_program(path: str | os.PathLike[str], limits: Limits | None = None) -> Program:
    """Program in a file from a stranger.

    Raises:
        PackageError: the file is refused, or the program in it (remote's fault).
    """
    limits = limits or Limits()
    return parse_program(read_ordinary(path, limits.json_bytes), limits)


def _brief(error: BaseException) -> str:
    return (str(error) or type(error).__name__)[:400]


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _list(value: Any, limit: int, what: str) -> list[Any]:
    _need(isinstance(value, list), f"{what} is not a list")
    _need(len(value) <= limit, f"{what} has {len(value)} items, over the limit of {limit}")
    return value  # type: ignore[no-any-return]


def _int(value: Any, lo: int, hi: int, what: str) -> int:
    _need(type(value) is int and lo <= value < hi, f"{what} is not a whole number in [{lo}, {hi})")
    return value  # type: ignore[no-any-return]


def _name(value: Any) -> str:
    """A state_dict name that is also harmless as a part of a path, a line, or a safetensors header."""
    sound = isinstance(value, str) and 0 < len(value) <= _MAX_NAME and value.isprintable()
    _need(sound and not _UNSAFE_NAME.search(value), "a name is malformed")
    return value  # type: ignore[no-any-return]


def _read(document: Any, limits: Limits) -> Program:
    _need(isinstance(document, dict) and document.keys() == _KEYS, f"keys are not {sorted(_KEYS)}")
    _need(document["format"] == FORMAT, f"format is not {FORMAT}")
    inputs = _leaves(document["inputs"], {"input"}, limits)
    params = _leaves(document["params"], {"param"}, limits)
    buffers = _leaves(document["buffers"], {"buffer", "frozen"}, limits)
    leaves = inputs + params + buffers
    names = [leaf.name for leaf in leaves]
    _need(len(set(names)) == len(names), "a name stands twice among inputs, parameters and buffers")
    for leaf in inputs:
        _need(_FIELD.fullmatch(leaf.name) is not None, f"input {leaf.name!r} is not x0, … or y0, …")
    for leaf in params:
        _need(ops.DTYPES[leaf.dtype].is_floating_point, f"parameter {leaf.name!r} is not of a floating dtype")
    nodes, count = _nodes(document["nodes"], leaves, limits)
    held = {leaf.name for leaf in params + buffers}
    tied = tuple(
        tuple(_name(n) for n in _list(group, limits.leaves, "a tied group"))
        for group in _list(document["tied"], limits.leaves, "tied")
    )
    flat = [name for group in tied for name in group]
    _need(len(set(flat)) == len(flat), "a name is tied twice")
    _need(all(len(g) > 1 and g[0] in held and not held & set(g[1:]) for g in tied), "a tied group is wrong")
    transient = tuple(_name(n) for n in _list(document["transient"], limits.leaves, "transient"))
    _need({leaf.name for leaf in buffers} >= set(transient), "a transient name is not a buffer")
    bounds = tuple(
        _int(b, 1, len(nodes) + 1, "a layer bound") for b in _list(document["layers"], limits.nodes, "layers")
    )
    return Program(
        inputs, params, buffers, nodes, _int(document["output"], 0, count, "output"), bounds, tied, transient
    )


def _leaves(value: Any, kinds: set[str], limits: Limits) -> tuple[Leaf, ...]:
    leaves = []
    for item in _list(value, limits.leaves, "a list of tensors"):
        _need(isinstance(item, list) and len(item) == 4, "a tensor is not [name, shape, dtype, kind]")
        name, kind = _name(item[0]), item[3]
        _need(isinstance(kind, str) and kind in kinds, f"kind of {name!r} is not one of {sorted(kinds)}")
        spec = _spec(item[1], item[2])
        leaves.append(Leaf(name, spec.shape, spec.dtype, kind))
    return tuple(leaves)


def _spec(shape: Any, dtype: Any) -> TensorSpec:
    sizes = tuple(_int(n, 0, _MAX_SIZE, "a size") for n in _list(shape, _MAX_RANK, "a shape"))
    _need(isinstance(dtype, str) and dtype in ops.DTYPES, "a dtype is unknown")
    # A size of 0 must not hide sizes whose strides overflow.
    _need(math.prod(max(1, n) for n in sizes) < _MAX_SIZE, "a tensor is too large")
    return TensorSpec(sizes, dtype)


def _nodes(value: Any, leaves: tuple[Leaf, ...], limits: Limits) -> tuple[tuple[Node, ...], int]:
    nodes: list[Node] = []
    count = len(leaves)
    writable = {slot for slot, leaf in enumerate(leaves) if leaf.kind == "buffer"}
    for index, item in enumerate(_list(value, limits.nodes, "nodes")):
        try:
            node = _node(item, count)
            check_node(node)
            _need(set(node.mutated()) <= writable, "it writes to something that is not a buffer")
            _need(bool(node.outputs) != (node.op in ops.MUTATING_OPS), "it defines no slot")
            _need(node.op not in ops.MUTATING_OPS or len(node.mutated()) == 1, "it writes to nothing")
        except KeyError as error:
            raise ValueError(f"node {index}: operation {_brief(error)} is not allowed") from error
        except ValueError as error:
            raise ValueError(f"node {index}: {error}") from error
        nodes.append(node)
        count += len(node.outputs)
        _need(count <= limits.slots, f"more than {limits.slots} tensors")
    return tuple(nodes), count


def _node(item: Any, slots: int) -> Node:
    _need(isinstance(item, list) and len(item) == 5, "a node is not [op, args, kwargs, outputs, no_grad]")
    op, args, kwargs, outputs, no_grad = item
    _need(isinstance(op, str) and len(op) < 100, "an operation is not a name")
    _need(isinstance(kwargs, dict) and len(kwargs) < 32, "keyword arguments are not an object")
    _need(isinstance(no_grad, bool), "no_grad is not a truth value")
    packed = _arg(args, slots, 0)
    _need(isinstance(packed, tuple), "arguments are not a list")
    named = tuple((name, _arg(kwargs[name], slots, 1)) for name in sorted(kwargs))
    specs = []
    for spec in _list(outputs, MAX_LIST, "outputs"):
        _need(isinstance(spec, list) and len(spec) == 2, "a result is not [shape, dtype]")
        specs.append(_spec(*spec))
    return Node(op, packed, named, tuple(specs), no_grad)  # type: ignore[arg-type]


def _arg(value: Any, slots: int, depth: int) -> Arg:
    if isinstance(value, list):
        _need(depth < _MAX_NESTING, "arguments are nested too deeply")
        return tuple(_arg(item, slots, depth + 1) for item in _list(value, MAX_LIST, "an argument"))
    if isinstance(value, dict):
        _need(len(value) == 1, "an argument object has not exactly one key")
        ((tag, content),) = value.items()
        reader = _TAGS.get(tag)
        _need(reader is not None, f"argument kind {tag[:20]!r} is unknown")
        return reader(content, slots)  # type: ignore[misc]
    if isinstance(value, float):
        _need(math.isfinite(value), "a number is out of range")
    return value  # type: ignore[no-any-return]


def _choice(table: dict[str, Any]) -> Callable[[Any, int], Arg]:
    def read(content: Any, slots: int) -> Arg:
        _need(isinstance(content, str) and content in table, "an argument names an unknown value")
        return table[content]  # type: ignore[no-any-return]

    return read


_TAGS: dict[str, Callable[[Any, int], Arg]] = {
    "slot": lambda content, slots: Ref(_int(content, 0, slots, "a reference")),
    "dtype": _choice(ops.DTYPES),
    "memory_format": _choice(ops.MEMORY_FORMATS),
    "float": _choice({"inf": math.inf, "-inf": -math.inf, "nan": math.nan}),
}


def _check_loss(program: Program) -> None:
    spec = program.analysis.specs[program.output]
    _need(spec.shape == () and spec.torch_dtype.is_floating_point, "the output is not a scalar loss")
    _need(spec.differentiable, "the loss does not depend on any parameter")
