"""Check the arguments of a node against the schema that ATen itself declares.

Problem: torch's dispatcher turns wrong arguments into anything from a clear error to a crash. Solution:
before an operation sees them, every argument's type is compared with `op._schema`, by a small reader of its
type names. Devices, layouts and generators are never arguments of a travelling program.
"""

from __future__ import annotations

import torch

from ravnest_p2p.model import ops
from ravnest_p2p.model.node import Arg, Node, Ref

MAX_INT = 1 << 48
MAX_LIST = 4096

_SPARSE = {("aten.embedding.default", "sparse"), ("aten.gather.default", "sparse_grad")}


def check_node(node: Node) -> None:
    """Refuse a node whose arguments do not fit the operation.

    Raises:
        ValueError: says which argument, and what was expected. KeyError: unknown operation.
    """
    op = ops.resolve(node.op)
    arguments = op._schema.arguments
    positional = [a for a in arguments if not a.kwarg_only]
    if len(node.args) > len(positional):
        raise ValueError(f"{node.op} takes {len(positional)} arguments, not {len(node.args)}")
    given = {a.name: value for a, value in zip(positional, node.args, strict=False)}
    for name, value in node.kwargs:
        if name in given:
            raise ValueError(f"{node.op} got argument {name} twice")
        if any(a.name == name and "Tensor" in str(a.real_type) for a in positional):
            # Which argument is written to, and what a node costs, is told by position.
            raise ValueError(f"{node.op} takes the tensor {name} by position only")
        given[name] = value
    for argument in arguments:
        if argument.name not in given:
            if not argument.has_default_value():
                raise ValueError(f"{node.op} lacks argument {argument.name}")
            continue
        kind = str(argument.real_type)
        value = given.pop(argument.name)
        scalar = kind == "Tensor" and argument is not arguments[0] and node.op in ops.SCALAR_OPERAND_OPS
        if not fits(value, "number" if scalar and not isinstance(value, Ref) else kind):
            raise ValueError(f"{node.op}: argument {argument.name} is not a valid {kind}")
        if value is True and (node.op, argument.name) in _SPARSE:
            raise ValueError(f"{node.op}: {argument.name}=True makes gradients that cannot be sent")
        if argument.name == "divisor_override" and value is not None and int(value) < 1:  # type: ignore[arg-type]
            # The lowest integer divided by -1 kills the process (SIGFPE).
            raise ValueError(f"{node.op}: divisor_override={value} is not positive")
        if value is True and argument.name == "pin_memory":
            raise ValueError(f"{node.op}: pinned memory is not for travelling programs")
    if given:
        raise ValueError(f"{node.op} has no argument {sorted(given)[0]}")
    _check_buffers(node)
    whole = any(not spec.torch_dtype.is_floating_point for spec in node.outputs)
    if whole and dict(node.kwargs).get("rounding_mode") == "trunc":
        # Truncated division of the lowest integer by -1 kills the process (SIGFPE).
        raise ValueError(f"{node.op} truncates integers, which is not safe; use rounding_mode='floor'")


def _check_buffers(node: Node) -> None:
    if node.op in ops.MUTATING_OPS and node.outputs:
        raise ValueError(f"{node.op} writes in place and defines no slot")


def fits(value: Arg, kind: str) -> bool:
    """Whether the value is of the schema type with that name."""
    if kind.startswith("Optional["):
        return value is None or fits(value, kind[len("Optional[") : -1])
    if kind.startswith("List["):
        inner = kind[len("List[") : -1]
        return isinstance(value, tuple) and len(value) <= MAX_LIST and all(fits(v, inner) for v in value)
    if kind == "Tensor":
        return isinstance(value, Ref)
    if kind == "int":
        return _is_int(value)
    if kind == "bool":
        return isinstance(value, bool)
    if kind == "float":
        return isinstance(value, float) or _is_int(value)
    if kind == "number":
        return isinstance(value, (bool, float)) or _is_int(value)
    if kind == "str":
        return isinstance(value, str) and value in ops.STRINGS
    if kind == "ScalarType":
        return isinstance(value, torch.dtype) and value in ops.DTYPES.values()
    if kind == "MemoryFormat":
        return isinstance(value, torch.memory_format) and value in ops.MEMORY_FORMATS.values()
    return False


def _is_int(value: Arg) -> bool:
    return isinstance(value, int) and not isinstance(value, (bool, Ref)) and abs(value) <= MAX_INT
