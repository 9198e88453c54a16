"""A model as data: a straight-line program over numbered slots.

Problem: code from strangers must not run, and `torch.export`'s own file format runs code when loaded.
Solution: a program is a list of operations in static single assignment form. Slots are numbered: first the
data inputs, then the parameters, the buffers, and then every result of every node in order. A node may
refer to lower slots only. Operations that write in place name a buffer as first argument and define no
slot.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from ravnest_p2p.core.types import LayerCost
from ravnest_p2p.model.abstract import Analysis, analyse
from ravnest_p2p.model.cut import CutMap
from ravnest_p2p.model.layers import layer_costs
from ravnest_p2p.model.node import Leaf, Node, leaf_json, node_json

if TYPE_CHECKING:
    from ravnest_p2p.model.parse import Limits

FORMAT = "ravnest-program/1"


@dataclass(frozen=True)
class Graph:
    """Operations from data fields to results; what a train step and an evaluation share.

    Attributes:
        inputs: data fields "x0", "x1", … (model inputs) and "y0", … (labels), batch size fixed.
        params: tensors that belong to one stage, under their state_dict names; a tied one stands here once.
        buffers: all others that it reads.
    """

    inputs: tuple[Leaf, ...]
    params: tuple[Leaf, ...]
    buffers: tuple[Leaf, ...]
    nodes: tuple[Node, ...]

    trains: ClassVar[bool]
    """Whether gradients flow back through it."""

    @property
    def results(self) -> tuple[int, ...]:
        """Slots that are wanted of it, the loss first."""
        raise NotImplementedError

    @cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        """Inputs, parameters and buffers: slot i is leaf i."""
        return self.inputs + self.params + self.buffers

    @property
    def param_slots(self) -> range:
        return range(len(self.inputs), len(self.inputs) + len(self.params))

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
        """Slots of buffers that it changes."""
        return frozenset(slot for node in self.nodes for slot in node.mutated())

    @cached_property
    def analysis(self) -> Analysis:
        """Result of the abstract run, made once."""
        return analyse(self)

    @cached_property
    def cut_map(self) -> CutMap:
        """Liveness at every place between two nodes, computed once."""
        return CutMap(self)


@dataclass(frozen=True)
class Program(Graph):
    """The captured train step of one micro-batch, from data fields to the loss.

    Attributes:
        params: trained parameters.
        buffers: state, constants and frozen parameters.
        output: slot of the scalar loss.
        layer_bounds: index of the node after each layer; the last is the number of nodes.
        tied: groups of names of one tensor; the first is the one in `params` or `buffers`.
        transient: names in `buffers` that are not in the model's state_dict.
    """

    trains = True

    output: int
    layer_bounds: tuple[int, ...] = ()
    tied: tuple[tuple[str, ...], ...] = ()
    transient: tuple[str, ...] = field(default=())

    @property
    def results(self) -> tuple[int, ...]:
        """The loss alone."""
        return (self.output,)

    @cached_property
    def layers(self) -> tuple[LayerCost, ...]:
        """Cost of each layer for one micro-batch, from the abstract run."""
        return layer_costs(self)

    def to_json(self) -> bytes:
        """Canonical bytes: equal programs give equal bytes."""
        document = {
            "format": FORMAT,
            "inputs": [leaf_json(leaf) for leaf in self.inputs],
            "params": [leaf_json(leaf) for leaf in self.params],
            "buffers": [leaf_json(leaf) for leaf in self.buffers],
            "nodes": [node_json(node) for node in self.nodes],
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
