"""Take one stage out of a program.

A stage is the nodes of its layers, plus those before it that are computed again (masks, positions), minus
those that only other stages need. Slots keep the whole program's numbers and nodes their indices, so that
random nodes draw the same numbers however the program is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

from ravnest_p2p.core.errors import PackageError
from ravnest_p2p.core.types import Capability, LayerCost
from ravnest_p2p.model import ops
from ravnest_p2p.model.program import Node, Program, TensorSpec

if TYPE_CHECKING:
    from ravnest_p2p.model.package import Package
    from ravnest_p2p.model.requirements import Terms


@dataclass(frozen=True)
class StageProgram:
    """Layers [lo, hi) of a program.

    Attributes:
        params: trained parameters that it owns, by name; those of earlier stages that it uses as well are
            among what it receives.
        buffers: all other tensors that it holds: state, constants, frozen parameters.
        mutable_buffers: those of `buffers` that training changes; only they need saving and averaging.
        data_inputs: data fields that it reads, such as "x0" or "y0".
        receives: what comes from the stage before, in order. Empty for the first.
        sends: what goes to the stage after, in order; the loss for the last.
        nodes: (index in the whole program, node).
        received_slots, sent_slots: slots of `receives` and `sends`.
    """

    program: Program
    lo: int
    hi: int
    params: tuple[str, ...]
    buffers: tuple[str, ...]
    mutable_buffers: tuple[str, ...]
    data_inputs: tuple[str, ...]
    receives: tuple[TensorSpec, ...]
    sends: tuple[TensorSpec, ...]
    nodes: tuple[tuple[int, Node], ...]
    received_slots: tuple[int, ...]
    sent_slots: tuple[int, ...]

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

    def tensor_spec(self, name: str) -> TensorSpec:
        """Shape and dtype of a named parameter, buffer or data input."""
        return self.program.leaf(name).spec


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
    sent = cuts.crossing(end) if hi < layers else (program.output,)
    nodes = _needed(program, begin, end, set(sent))
    used = {slot for _, node in nodes for slot in node.refs()} | set(sent)
    used -= set(received)
    leaves = [(slot, leaf) for slot, leaf in enumerate(program.leaves) if slot in used]
    specs = program.analysis.specs
    return StageProgram(
        program=program,
        lo=lo,
        hi=hi,
        params=tuple(leaf.name for _, leaf in leaves if leaf.kind == "param"),
        buffers=tuple(leaf.name for _, leaf in leaves if leaf.kind in ("buffer", "frozen")),
        mutable_buffers=tuple(leaf.name for slot, leaf in leaves if slot in program.mutated_slots),
        data_inputs=tuple(leaf.name for _, leaf in leaves if leaf.kind == "input"),
        receives=tuple(specs[slot] for slot in received),
        sends=tuple(specs[slot] for slot in sent),
        nodes=nodes,
        received_slots=received,
        sent_slots=sent,
    )


def split(
    model: Package | Program,
    cuts: Sequence[int] | None = None,
    *,
    stages: int | None = None,
    peers: Sequence[Capability] | None = None,
    terms: Terms | None = None,
    layers: Sequence[LayerCost] | None = None,
) -> list[StageProgram]:
    """All stages of a model, cut at given layers, into equal parts, or for given peers.

    Exactly one of `cuts`, `stages` and `peers` is given. The latter two cut as the swarm's planner does: the
    slowest stage as fast as can be, then the fewest bytes over the cuts.

    Args:
        cuts: stage s starts at layer cuts[s-1]; ascending, each in (0, number of layers).
        stages: that many for equal peers, whose memory and links are no bound.
        peers: one stage for each, in this order; their speed, link and memory are respected.
        terms: optimizer, precision and the rest that memory depends on.
        layers: costs to use instead of the program's own, such as `measured_layers` gives.
    Raises:
        PackageError: the cuts do not ascend, or the program has no such layers.
        PlanningError: too few layers for so many stages, or the peers' memory does not suffice.
        ValueError: not exactly one way to cut is given.
    """
    if sum(way is not None for way in (cuts, stages, peers)) != 1:
        raise ValueError("give exactly one of cuts, stages and peers")
    program = model if isinstance(model, Program) else model.program
    if cuts is None:
        from ravnest_p2p.model.fitting import cuts_of, equal_peers, fit
        from ravnest_p2p.model.requirements import Requirements

        chosen = equal_peers(stages) if stages is not None else list(peers or ())
        cuts = cuts_of(fit(Requirements(program, terms, layers), chosen))
    edges = [0, *cuts, len(program.layer_bounds)]
    return [stage_program(program, lo, hi) for lo, hi in pairwise(edges)]


def _needed(program: Program, begin: int, end: int, sent: set[int]) -> tuple[tuple[int, Node], ...]:
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
