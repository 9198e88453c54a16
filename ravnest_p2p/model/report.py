"""Everything that is known of a captured model before it is trained, as data for people and machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ravnest_p2p.core.pipeline.batch_advice import pipeline_advice
from ravnest_p2p.core.planning.cost import Draft, planning_table
from ravnest_p2p.core.planning.cuts import RECOMPUTE_WORK, stage_s
from ravnest_p2p.core.types import Capability, LayerCost
from ravnest_p2p.model.blocks import Group
from ravnest_p2p.model.fitting import equal_peers, fit
from ravnest_p2p.model.package import Package
from ravnest_p2p.model.requirements import Need, Requirements, Terms


@dataclass(frozen=True, slots=True)
class StageReport:
    """One stage of the proposed split.

    Attributes:
        peer: its name; of peers that were made up "peer 0", "peer 1", ….
        offered_bytes: the peer's memory; None where it is no bound.
        staleness: τ on these links.
        busy: its time for a micro-batch as a share of the slowest stage's.
    """

    need: Need
    peer: str
    offered_bytes: int | None
    staleness: int
    busy: float


@dataclass(frozen=True)
class Report:
    """What a model is, what it needs, and how it would be split.

    Attributes:
        microbatch_size: samples that it was captured with.
        checked: captured here with its weights, and compared with eager.
        exact: two steps were equal to the last bit; else, where `checked`, but for rounding.
        evaluation_nodes: operations of its evaluation, 0 where it has none.
        evaluation_refusal: why it has none, "" where that is not known.
        layers: each with what it needs on a peer of its own.
        groups: the layers as runs of equal blocks.
        whole: all of it on one peer.
        stages: empty where no split was asked for.
    """

    params: int
    nodes: int
    microbatch_size: int
    checked: bool
    exact: bool
    evaluation_nodes: int
    evaluation_refusal: str
    terms: Terms
    layers: tuple[Need, ...]
    groups: tuple[Group, ...]
    whole: Need
    stages: tuple[StageReport, ...]

    @property
    def balance(self) -> float:
        """Mean of the stages' times over the slowest one's: 1 is perfect."""
        return sum(stage.busy for stage in self.stages) / max(1, len(self.stages))

    @property
    def advice(self) -> list[str]:
        """What may be better about m for so many stages, in words."""
        terms = self.terms
        return pipeline_advice(terms.microbatches_per_update, terms.staleness_bound, len(self.stages))

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; sizes in bytes."""
        return {
            "params": self.params,
            "nodes": self.nodes,
            "microbatch_size": self.microbatch_size,
            "checked_against_eager": self.checked,
            "evaluation_nodes": self.evaluation_nodes,
            "evaluation_refusal": self.evaluation_refusal,
            "precision": self.terms.precision,
            "optimizer": self.terms.optimizer.name,
            "checkpoint": self.terms.checkpoint,
            "microbatches_per_update": self.terms.microbatches_per_update,
            "advice": self.advice,
            "whole": _need(self.whole),
            "layers": [_need(need) for need in self.layers],
            "groups": [
                {"lo": g.lo, "hi": g.hi, "length": g.length, "repeats": g.repeats, "name": g.name}
                for g in self.groups
            ],
            "stages": [
                {
                    "peer": stage.peer,
                    "offered_bytes": stage.offered_bytes,
                    "staleness": stage.staleness,
                    "busy": round(stage.busy, 4),
                    **_need(stage.need),
                }
                for stage in self.stages
            ],
        }


def make_report(
    package: Package,
    terms: Terms | None = None,
    *,
    stages: int | None = None,
    peers: Sequence[Capability] | None = None,
    layers: Sequence[LayerCost] | None = None,
) -> Report:
    """See `Package.report`."""
    needs = Requirements(package, terms, layers)
    chosen = list(peers) if peers is not None else equal_peers(stages) if stages is not None else []
    rows: tuple[StageReport, ...] = ()
    if chosen:
        rows = _stages(needs, fit(needs, chosen, any_order=peers is not None), bounded=peers is not None)
    first = package.program.inputs[0].shape if package.program.inputs else ()
    return Report(
        params=needs.params,
        nodes=len(package.program.nodes),
        microbatch_size=first[0] if first else 1,
        checked=package.compared,
        exact=package.exact,
        evaluation_nodes=0 if package.evaluation is None else len(package.evaluation.nodes),
        evaluation_refusal=package.evaluation_refusal,
        terms=needs.terms,
        layers=tuple(needs.need(n, n + 1) for n in range(len(needs.layers))),
        groups=needs.groups,
        whole=needs.whole,
        stages=rows,
    )


def _stages(needs: Requirements, draft: Draft, *, bounded: bool) -> tuple[StageReport, ...]:
    table = planning_table(needs.terms.job(needs.layers))
    places = list(zip(draft.peers, draft.ranges, draft.staleness, draft.recompute, strict=True))
    factors = [RECOMPUTE_WORK if again else 1.0 for again in draft.recompute]
    times_s = [
        stage_s(table, peer, lo, hi, factor)
        for (peer, (lo, hi), _, _), factor in zip(places, factors, strict=True)
    ]
    slowest_s = max(max(times_s), 1e-12)
    count = len(places)
    return tuple(
        StageReport(
            need=needs.need(lo, hi, stage=n, stages=count, staleness=tau, recompute=again, exact=True),
            peer=peer.peer,
            offered_bytes=peer.memory_bytes if bounded else None,
            staleness=tau,
            busy=time_s / slowest_s,
        )
        for n, ((peer, (lo, hi), tau, again), time_s) in enumerate(zip(places, times_s, strict=True))
    )


def _need(need: Need) -> dict[str, Any]:
    return {
        "lo": need.lo,
        "hi": need.hi,
        "name": need.name,
        "params": need.params,
        "flops": need.flops,
        "memory_bytes": {**need.memory._asdict(), "tensors": need.memory.tensors},
        "needed_bytes": need.memory.needed,
        "peak_tensor_bytes": need.peak_bytes or None,
        "recompute": need.recompute,
        "in_bytes": need.in_bytes,
        "out_bytes": need.out_bytes,
        "carried_bytes": need.carried_bytes,
        "carried": list(need.carried),
    }
