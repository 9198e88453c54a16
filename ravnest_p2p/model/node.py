"""What a program consists of: named tensors from outside, and operations that refer to slots."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Union

import torch

from ravnest_p2p.model import ops


@dataclass(frozen=True, slots=True)
class Ref:
    """An argument that is the value of a slot."""

    slot: int


Arg = Union[Ref, int, float, bool, None, str, torch.dtype, torch.memory_format, tuple["Arg", ...]]  # noqa: UP007


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a slot holds.

    Attributes:
        dtype: torch dtype name without prefix, such as "float32".
        differentiable: a gradient flows back through it.
    """

    shape: tuple[int, ...]
    dtype: str
    differentiable: bool = False

    @property
    def torch_dtype(self) -> torch.dtype:
        return ops.DTYPES[self.dtype]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.torch_dtype.itemsize


@dataclass(frozen=True, slots=True)
class Leaf:
    """A named tensor from outside: a data field, a parameter or a buffer.

    Attributes:
        kind: "input", "param", "buffer" (state), or "frozen" (a parameter that is not trained).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(self.shape, self.dtype, self.kind == "param")


@dataclass(frozen=True, slots=True)
class Node:
    """One operation.

    Attributes:
        op: full name, such as "aten.linear.default".
        outputs: (shape, dtype) of each tensor that it defines, in order.
        no_grad: runs without recording for the backward pass.
    """

    op: str
    args: tuple[Arg, ...]
    kwargs: tuple[tuple[str, Arg], ...]
    outputs: tuple[TensorSpec, ...]
    no_grad: bool = False

    def refs(self) -> tuple[int, ...]:
        """Slots that it reads, in the order of its arguments."""
        found: list[int] = []

        def walk(value: Arg) -> None:
            if isinstance(value, Ref):
                found.append(value.slot)
            elif isinstance(value, tuple):
                for item in value:
                    walk(item)

        walk(self.args)
        for _, value in self.kwargs:
            walk(value)
        return tuple(found)

    def mutated(self) -> tuple[int, ...]:
        """Buffer slots that it writes in place."""
        if self.op in ops.MUTATING_OPS:
            return (self.args[0].slot,) if isinstance(self.args[0], Ref) else ()
        positions = ops.STATISTICS_ARGS.get(self.op, ())
        if positions and self.args[ops.STATISTICS_FLAG : ops.STATISTICS_FLAG + 1] == (False,):
            return ()
        held = (self.args[i] for i in positions if i < len(self.args))
        return tuple(value.slot for value in held if isinstance(value, Ref))


def leaf_json(leaf: Leaf) -> list[object]:
    """The leaf as plain data."""
    return [leaf.name, list(leaf.shape), leaf.dtype, leaf.kind]


def node_json(node: Node) -> list[object]:
    """The node as plain data."""
    return [
        node.op,
        [_arg_json(value) for value in node.args],
        {name: _arg_json(value) for name, value in node.kwargs},
        [[list(spec.shape), spec.dtype] for spec in node.outputs],
        node.no_grad,
    ]


def _arg_json(value: Arg) -> object:
    if isinstance(value, Ref):
        return {"slot": value.slot}
    if isinstance(value, torch.dtype):
        return {"dtype": ops.dtype_name(value)}
    if isinstance(value, torch.memory_format):
        return {"memory_format": str(value).removeprefix("torch.")}
    if isinstance(value, tuple):
        return [_arg_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value
