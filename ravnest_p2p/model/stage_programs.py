"""Take one stage out of a program.

A stage is the nodes of its layers, plus those before it that are computed again (masks, positions), minus
those that only other stages need. Slots keep the whole program's numbers and nodes their indices, so that
random nodes draw the same numbers however the program is cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from ravnest_p2p.core.errors import PackageError
from ravnest_p2p.core.types import LayerCost
from ravnest_p2p.model import ops
from ravnest_p2p.model.node import Node, TensorSpec

if TYPE_CHECKING:
    from ravnest_p2p.model.program import Graph, Program


@dataclass(frozen=True)
class Excerpt:
    """One stage's share of a graph.

    Attributes:
        params: tensors that it owns, by name; those of earlier stages that it uses as well are among what it
            receives. Of a train step these are the trained parameters.
        buffers: all other tensors that it holds: state, constants, frozen parameters.
        mutable_buffers: those of `buffers` that training changes; only they need saving and averaging.
        data_inputs: data fields that it reads, such as "x0" or "y0".
        receives: what comes from the stage before, in order. Empty for the first.
        sends: what goes to the stage after, in order; the loss for the last.
        nodes: (index in the whole program, node).
        received_slots, sent_slots: slots of `receives` and `sends`.
    """

    program: Graph
    params: tuple[str, ...]
    buffers: tuple[str, ...]
    mutable_buffers: tuple[str, ...]
    data_inputs: tuple[str, ...]
    receives: tuple[TensorSpec, ...]
    sends: tuple[TensorSpec, ...]
    nodes: tuple[tuple[int, Node], ...]
    received_slots: tuple[int, ...]
    sent_slots: tuple[int, ...]

    def tensor_spec(self, name: str) -> TensorSpec:
        """Shape and dtype of a named parameter, buffer or data input."""
        return self.program.leaf(name).spec


@dataclass(frozen=True)
class StageProgram(Excerpt):
    """Layers [lo, hi) of a program."""

    program: Program
    lo: int
    hi: int

    @cached_property
    def cost(self) -> LayerCost:
        """Of its layers together; `out_bytes` and `carried_bytes` are those of the last one."""
        costs = self.program.layers[self.lo : self.hi]
        return LayerCost(
            flops=sum(c.flops for c in costs),
            param_bytes=sum(c.param_bytes for c in costs),
            activation_bytes=sum(c.activation_bytes for c in costs),
            out_bytes=costs[-1].out_bytes,
            carried_bytes=costs[-1].carried_bytes,
            remade_bytes=sum(c.remade_bytes for c in costs),
        )

    @cached_property
    def received_params(self) -> tuple[int, ...]:
        """Places in `receives` of trained parameters that a stage before owns."""
        return self._params_among(self.received_slots)

    @cached_property
    def sent_params(self) -> tuple[int, ...]:
        """Places in `sends` of trained parameters that stages after use as well."""
        return () if self.is_last else self._params_among(self.sent_slots)

    def _params_among(self, slots: tuple[int, ...]) -> tuple[int, ...]:
        leaves = len(self.program.leaves)
        return tuple(place for place, slot in enumerate(slots) if slot < leaves)

    @property
    def is_first(self) -> bool:
        return self.lo == 0

    @property
    def is_last(self) -> bool:
        return self.hi == len(self.program.layer_bounds)


def stage_program(program: Program, lo: int, hi: int) -> StageProgram:
    """The stage of layers [lo, hi).

    Raises:
        PackageError: the program has no such layers; the message names what holds its layers together.
    """
    layers = len(program.layer_bounds)
    if not 0 <= lo < hi <= layers:
        raise PackageError(f"no stage of layers [{lo}, {hi}): the model has {layers} layers{_held(program)}")
    cuts = program.cut_map
    begin = program.layer_bounds[lo - 1] if lo else 0
    end = program.layer_bounds[hi - 1]
    received = cuts.crossing(begin) if lo else ()
    sent = cuts.crossing(end) if hi < layers else program.results
    share = excerpt(program, begin, end, received, sent)
    return StageProgram(**vars(share), lo=lo, hi=hi)


def excerpt(graph: Graph, begin: int, end: int, received: tuple[int, ...], sent: tuple[int, ...]) -> Excerpt:
    """The nodes in [begin, end) and those that are computed again, as far as they make what is sent.

    Args:
        received, sent: slots.
    """
    nodes = _needed(graph, begin, end, set(sent))
    used = {slot for _, node in nodes for slot in node.refs()} | set(sent)
    used -= set(received)
    leaves = [(slot, leaf) for slot, leaf in enumerate(graph.leaves) if slot in used]
    inputs, params = len(graph.inputs), graph.param_slots
    specs = graph.analysis.specs
    return Excerpt(
        program=graph,
        params=tuple(leaf.name for slot, leaf in leaves if slot in params),
        buffers=tuple(leaf.name for slot, leaf in leaves if slot >= params.stop),
        mutable_buffers=tuple(leaf.name for slot, leaf in leaves if slot in graph.mutated_slots),
        data_inputs=tuple(leaf.name for slot, leaf in leaves if slot < inputs),
        receives=tuple(specs[slot] for slot in received),
        sends=tuple(specs[slot] for slot in sent),
        nodes=nodes,
        received_slots=received,
        sent_slots=sent,
    )


def _needed(program: Graph, begin: int, end: int, sent: set[int]) -> tuple[tuple[int, Node], ...]:
    remade, first = program.cut_map.remade, program.first_slots
    live = set(sent)
    kept: list[tuple[int, Node]] = []
    for index in range(end - 1, -1, -1):
        node = program.nodes[index]
        outputs = range(first[index], first[index + 1])
        wanted = any(slot in live for slot in outputs)
        inside = index >= begin
        effect = inside and (bool(node.mutated()) or node.op in ops.RANDOM_OPS)
        if effect or (wanted and (inside or remade[outputs[0]])):
            kept.append((index, node))
            live.update(node.refs())
    return tuple(reversed(kept))


def _held(program: Program) -> str:
    names = program.cut_map.holding()
    if not names:
        return ""
    aliases = {group[0]: " = ".join(group) for group in program.tied}
    listed = ", ".join(aliases.get(name, name) for name in names[:3])
    return f"; {listed} is used all along and keeps them on one stage (untie it to cut there)"
