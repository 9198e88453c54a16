"""A model as data: a straight-line program over numbered slots.

Problem: code from strangers must not run, and `torch.export`'s own file format runs code when loaded.
Solution: a program is a list of operations in static single assignment form. Slots are numbered: first the
data inputs, then the parameters, the buffers, and then every result of every node in order. A node may
refer to lower slots only. Operations that write in place name a buffer as first argument and define no
slot.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Union

import torch

from ravnest_p2p.core.types import LayerCost
from ravnest_p2p.model import ops

if TYPE_CHECKING:
    from ravnest_p2p.model.abstract import Analysis
    from ravnest_p2p.model.cut import CutMap
    from ravnest_p2p.model.parse import Limits

FORMAT = "ravnest-program/1"


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
        held = (self.args[i] for i in positions if i < len(self.args))
        return tuple(value.slot for value in held if isinstance(value, Ref))


@dataclass(frozen=True)
class Program:
    """The captured train step of one micro-batch, from data fields to the loss.

    Attributes:
        inputs: data fields "x0", "x1", … (model inputs) and "y0", … (labels), batch size fixed.
        params: trained parameters under their state_dict names; a tied one stands here once.
        buffers: state, constants and frozen parameters.
        output: slot of the scalar loss.
        layer_bounds: index of the node after each layer; the last is the number of nodes.
        tied: groups of names of one tensor; the first is the one in `params` or `buffers`.
        transient: names in `buffers` that are not in the model's state_dict.
    """

    inputs: tuple[Leaf, ...]
    params: tuple[Leaf, ...]
    buffers: tuple[Leaf, ...]
    nodes: tuple[Node, ...]
    output: int
    layer_bounds: tuple[int, ...] = ()
    tied: tuple[tuple[str, ...], ...] = ()
    transient: tuple[str, ...] = field(default=())

    @cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        """Inputs, parameters and buffers: slot i is leaf i."""
        return self.inputs + self.params + self.buffers

    @cached_property
    def _by_name(self) -> dict[str, Leaf]:
        return {leaf.name: leaf for leaf in self.leaves}

    def leaf(self, name: str) -> Leaf:
        """The input, parameter or buffer with that name; KeyError where there is none."""
        return self._by_name[name]

    @cached_property
    def first_slots(self) -> tuple[int, ...]:
        """Slot of the first result of each node (and the slot count at the end)."""
        slots = [len(self.leaves)]
        for node in self.nodes:
            slots.append(slots[-1] + len(node.outputs))
        return tuple(slots)

    @cached_property
    def mutated_slots(self) -> frozenset[int]:
        """Slots of buffers that training changes."""
        return frozenset(slot for node in self.nodes for slot in node.mutated())

    @cached_property
    def analysis(self) -> Analysis:
        """Result of the abstract run, made once."""
        from ravnest_p2p.model.abstract import analyse

        return analyse(self)

    @cached_property
    def cut_map(self) -> CutMap:
        """Liveness at every place between two nodes, computed once."""
        from ravnest_p2p.model.cut import CutMap

        return CutMap(self)

    @cached_property
    def layers(self) -> tuple[LayerCost, ...]:
        """Cost of each layer for one micro-batch, from the abstract run."""
        from ravnest_p2p.model.cost import layer_costs

        return layer_costs(self)

    def to_json(self) -> bytes:
        """Canonical bytes: equal programs give equal bytes."""
        document = {
            "format": FORMAT,
            "inputs": [_leaf_json(leaf) for leaf in self.inputs],
            "params": [_leaf_json(leaf) for leaf in self.params],
            "buffers": [_leaf_json(leaf) for leaf in self.buffers],
            "nodes": [_node_json(node) for node in self.nodes],
            "output": self.output,
            "layers": list(self.layer_bounds),
            "tied": [list(group) for group in self.tied],
            "transient": list(self.transient),
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    @staticmethod
    def from_json(data: bytes, limits: Limits | None = None) -> Program:
        """Read bytes from a stranger; everything is checked before anything is allocated.

        Args:
            limits: sizes that are accepted; `parse.Limits()` where None.
        Raises:
            PackageError: the bytes are not a program that could run here (remote's fault).
        """
        from ravnest_p2p.model.parse import parse_program

        return parse_program(data, limits)


def _leaf_json(leaf: Leaf) -> list[object]:
    return [leaf.name, list(leaf.shape), leaf.dtype, leaf.kind]


def _node_json(node: Node) -> list[object]:
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
