"""How fast a cluster would train, and how far its stages may run ahead.

Problem: compute, link speed and latency all limit a pipeline, and the window that hides latency costs memory.
Solution: a cluster's interval (seconds from one micro-batch to the next) is the longest of: one stage's
compute, its transfers, and its round trip to the loss and back over its window. Staleness follows from the
latency of a hop in units of half a stage's time, and is lowered where a peer's memory cannot hold the window.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ravnest_p2p.core.averaging import ADAPTIVE, bytes_share, copies, has_owners
from ravnest_p2p.core.cadence import TOLD_IN
from ravnest_p2p.core.capability import link_bps
from ravnest_p2p.core.compression import least_share
from ravnest_p2p.core.coordinates import predicted_rtt_s
from ravnest_p2p.core.pipeline.correction import NONE
from ravnest_p2p.core.pipeline.schedule import staleness_for
from ravnest_p2p.core.pipeline.window import FIXED
from ravnest_p2p.core.planning.cuts import (
    RECOMPUTE_WORK,
    LayerTable,
    Need,
    Recomputes,
    compute_s,
    stage_cuts,
    stage_s,
)
from ravnest_p2p.core.planning.memory import StageMemory, stage_memory
from ravnest_p2p.core.planning.overlap import LINK_SHARE, Rounds
from ravnest_p2p.core.planning.recompute import ALWAYS, AUTO, NEVER, Stretches
from ravnest_p2p.core.types import Capability, ClusterPlan, JobSpec, PeerId

MAX_LATENCY_RATIO = 1000.0

AMPLE = 2.0
"""Of what a stage needs: memory with which it keeps what costs little to make again."""

SPEED_TOLERANCE = 0.03
"""Equal machines measure their speed as far apart; within it, the cut that fewer bytes cross is better."""

MAX_BLOCKS = 64
"""Planning time grows with the square of the places to cut at; a 64th of a model is fine enough."""


@dataclass(frozen=True, slots=True)
class Draft:
    """One possible cluster: peers in pipeline order, their layers and staleness, its predicted interval.

    Attributes:
        recompute: which of the stages compute their activations again.
    """

    peers: tuple[Capability, ...]
    ranges: tuple[tuple[int, int], ...]
    staleness: tuple[int, ...]
    interval_s: float
    recompute: tuple[bool, ...]

    @property
    def ids(self) -> tuple[PeerId, ...]:
        return tuple(peer.peer for peer in self.peers)


def planning_table(spec: JobSpec, memory_scale: float = 1.0, blocks: int = MAX_BLOCKS) -> LayerTable:
    """The job's layers with at most so many blocks to cut between (more if it asks for many stages)."""
    share = least_share(spec.compression)
    return LayerTable(spec.layers, max(blocks, 4 * spec.stages), memory_scale, share)


def staleness_limit(spec: JobSpec) -> int:
    """Highest τ that the job allows on any stage."""
    return max(0, min(spec.microbatches_per_update, spec.staleness_bound))


def takes_part(spec: JobSpec, peer: Capability) -> bool:
    """Whether the peer's owner allows micro-batches of so many operations."""
    return sum(layer.flops for layer in spec.layers) <= peer.microbatch_flops


def stretches_of(spec: JobSpec, table: LayerTable) -> Stretches:
    """Where the job's stages may recompute; `table` is of its layers."""
    return table.stretches(staleness_limit(spec) + 1)


def memory_of(
    spec: JobSpec,
    table: LayerTable,
    stage: int,
    stages: int,
    lo: int,
    hi: int,
    staleness: int,
    *,
    recompute: bool,
    remake: bool = True,
) -> StageMemory:
    """Memory of one stage of the job, with or without recomputing.

    Args:
        remake: where nothing is recomputed and the job allows it, what costs little is made again.
    """
    stretches = stretches_of(spec, table) if recompute else None
    held = stretches.kept_bytes(lo, hi) if stretches else table.activation_bytes(lo, hi)
    if remake and not recompute and may_remake(spec):
        held -= table.remade_bytes(lo, hi)
    return stage_memory(
        param_bytes=table.param_bytes(lo, hi),
        activation_bytes=held,
        optimizer=spec.optimizer,
        staleness=staleness,
        microbatches_per_update=spec.microbatches_per_update,
        last=stage == stages - 1,
        recomputed_bytes=stretches.largest_bytes(lo, hi) if stretches else 0,
        carried_bytes=table.carried_bytes(lo, hi),
        correction=spec.staleness_correction,
        averaging_copies=averaging_copies(spec),
    )


def averaging_copies(spec: JobSpec) -> int:
    """Of a stage's parameters, that rounds work in, unless the job never has any."""
    return 0 if spec.clusters == 1 else copies(spec.averaging, spec.outer_momentum, spec.average_momentum)


def may_remake(spec: JobSpec) -> bool:
    """Whether stages may make again what costs little (`model.remade`): not on weights that have moved."""
    return spec.checkpoint != NEVER and spec.staleness_correction != NONE


def remakes(
    spec: JobSpec,
    table: LayerTable,
    stage: int,
    stages: int,
    lo: int,
    hi: int,
    staleness: int,
    memory_bytes: int,
) -> bool:
    """Whether a stage on a peer with so much memory makes again what costs little.

    Where memory is ample it does not. That is said by the peer, not by the plan, with room for the most that
    a plan may count with over the estimate.
    """
    kept = memory_of(spec, table, stage, stages, lo, hi, staleness, recompute=False, remake=False)
    return may_remake(spec) and kept.needed * AMPLE > memory_bytes


def stage_need_bytes(
    spec: JobSpec,
    table: LayerTable,
    stage: int,
    stages: int,
    lo: int,
    hi: int,
    staleness: int,
    recompute: bool | None = None,
) -> int:
    """Memory of one stage of the job, bytes, scaled by what was measured; by default the least that the job
    allows."""
    ways = [False] * (spec.checkpoint != ALWAYS) + [True] * (spec.checkpoint != NEVER)
    needed = min(
        memory_of(spec, table, stage, stages, lo, hi, staleness, recompute=way).needed
        for way in (ways if recompute is None else [recompute])
    )
    return math.ceil(needed * table.memory_scale)


def recomputes(
    spec: JobSpec,
    table: LayerTable,
    stage: int,
    stages: int,
    lo: int,
    hi: int,
    staleness: int,
    memory_bytes: int,
) -> bool:
    """Whether a stage on a peer with so much memory computes its activations again."""
    if spec.checkpoint != AUTO:
        return spec.checkpoint == ALWAYS
    plain = stage_need_bytes(spec, table, stage, stages, lo, hi, staleness, False)
    return plain > memory_bytes and plain > stage_need_bytes(spec, table, stage, stages, lo, hi, staleness)


def lowest_staleness(spec: JobSpec, stage: int, stages: int) -> int:
    """τ that a stage wants on links without latency; cuts must leave memory for it."""
    return staleness_for(stage, stages, 0.0, staleness_limit(spec))


def need_of(spec: JobSpec, table: LayerTable, stages: int) -> Need:
    """Memory of (stage, lo, hi) at the lowest staleness."""
    lowest = [lowest_staleness(spec, stage, stages) for stage in range(stages)]
    return lambda stage, lo, hi: stage_need_bytes(spec, table, stage, stages, lo, hi, lowest[stage])


def recomputes_of(spec: JobSpec, table: LayerTable, peers: Sequence[Capability]) -> Recomputes:
    """Whether (stage, lo, hi) recomputes on its peer, at the lowest staleness."""
    stages = len(peers)
    lowest = [lowest_staleness(spec, stage, stages) for stage in range(stages)]
    return lambda stage, lo, hi: recomputes(
        spec, table, stage, stages, lo, hi, lowest[stage], peers[stage].memory_bytes
    )


def draft_cluster(spec: JobSpec, table: LayerTable, peers: Sequence[Capability]) -> Draft | None:
    """The best cluster of these peers in this order, or None where the model does not fit."""
    need = need_of(spec, table, len(peers))
    again = recomputes_of(spec, table, peers)
    ranges = stage_cuts(table, peers, need=need, recomputes=again, tolerance=SPEED_TOLERANCE)
    return None if ranges is None else draft_with_ranges(spec, table, peers, ranges)


def draft_with_ranges(
    spec: JobSpec, table: LayerTable, peers: Sequence[Capability], ranges: Sequence[tuple[int, int]]
) -> Draft:
    """The cluster of these peers with these layers, which must fit at the lowest staleness."""
    stages = len(peers)
    again = recomputes_of(spec, table, peers)
    recompute = [again(s, lo, hi) for s, (lo, hi) in enumerate(ranges)]
    factors = [RECOMPUTE_WORK if again else 1.0 for again in recompute]
    places = list(zip(peers, ranges, factors, strict=True))
    times_s = [stage_s(table, peer, lo, hi, factor) for peer, (lo, hi), factor in places]
    work_s = [factor * compute_s(table, peer, lo, hi) for peer, (lo, hi), factor in places]
    hops_s = [hop_s(table, peers[s], peers[s + 1], ranges[s][1]) for s in range(stages - 1)]
    slowest_s = max(times_s)
    half_s = slowest_s / 2.0
    worst_hop_s = max(hops_s, default=0.0)
    ratio = min(worst_hop_s / half_s, MAX_LATENCY_RATIO) if half_s > 0.0 else MAX_LATENCY_RATIO
    staleness: list[int] = []
    for stage, (peer, (lo, hi)) in enumerate(zip(peers, ranges, strict=True)):
        tau = staleness_for(stage, stages, ratio, staleness_limit(spec))
        tau = min(tau, staleness[-1]) if staleness else tau
        lowest, way = lowest_staleness(spec, stage, stages), recompute[stage]
        while (
            tau > lowest
            and stage_need_bytes(spec, table, stage, stages, lo, hi, tau, way) > peer.memory_bytes
        ):
            tau -= 1
        staleness.append(tau)
    interval_s = slowest_s
    for stage in range(stages):
        loop_s = sum(work_s[stage:]) + 2.0 * sum(hops_s[stage:])
        interval_s = max(interval_s, loop_s / (staleness[stage] + 1))
    return Draft(tuple(peers), tuple(ranges), tuple(staleness), max(interval_s, 1e-9), tuple(recompute))


def staleness_bounds(spec: JobSpec, table: LayerTable, draft: Draft) -> tuple[int, ...]:
    """Bound on each stage's τ: as predicted where that is fixed, else what job and memory allow."""
    if spec.staleness == FIXED:
        return draft.staleness
    stages, limit = len(draft.peers), staleness_limit(spec)
    bounds: list[int] = []
    for stage, (peer, (lo, hi)) in enumerate(zip(draft.peers, draft.ranges, strict=True)):

        def need(tau: int, at: tuple[int, int, int] = (stage, lo, hi)) -> int:
            return stage_need_bytes(spec, table, at[0], stages, *at[1:], tau, draft.recompute[at[0]])

        least, most = draft.staleness[stage], bounds[-1] if bounds else limit
        wider = bisect_right(range(least + 1, most + 1), peer.memory_bytes, key=need)
        bounds.append(least + wider if stage + 1 < stages else 0)
    return tuple(bounds)


ONE_RING_UP_TO = 8
"""Clusters; more form a grid (`rings`)."""


def hop_s(table: LayerTable, a: Capability, b: Capability, at: int) -> float:
    """One way over the cut before layer `at`: half a round trip and one micro-batch's transfer, seconds."""
    transfer = 8.0 * table.cut_bytes(at) / min(link_bps(a), link_bps(b))
    return predicted_rtt_s(a.coordinate, b.coordinate) / 2.0 + transfer


def averaging_s(
    spec: JobSpec, table: LayerTable, clusters: Sequence[Draft], link_share: float = 1.0
) -> float:
    """One averaging round over all clusters, seconds: 2(C-1)/C of a stage's bytes on the slowest link, and
    the latency of one chunk's way.

    Args:
        link_share: of each link that the round may take.
    """
    count = len(clusters)
    if count < 2:
        return 0.0
    sent_share = bytes_share(spec.averaging, spec.average_momentum)
    slowest_s = max(
        8.0 * sent_share * table.param_bytes(lo, hi) / (link_share * link_bps(peer))
        for cluster in clusters
        for peer, (lo, hi) in zip(cluster.peers, cluster.ranges, strict=True)
    )
    widest_s = max(
        predicted_rtt_s(a.coordinate, b.coordinate)
        for cluster, following in zip(clusters, [*clusters[1:], clusters[0]], strict=True)
        for a, b in zip(cluster.peers, following.peers, strict=False)
    )
    return 2.0 * (count - 1) / count * slowest_s + _hops(spec, count) * widest_s / 2.0


def _hops(spec: JobSpec, count: int) -> int:
    """Of a chunk and its mean among so many clusters: to an owner and back, or round a ring or a grid."""
    if has_owners(spec.averaging, spec.means):
        return 2
    if count <= ONE_RING_UP_TO:
        return 2 * (count - 1)
    columns = math.ceil(math.sqrt(count))
    return 2 * (columns - 1 + math.ceil(count / columns) - 1)


def round_updates(spec: JobSpec, clusters: Sequence[Draft]) -> tuple[int, ...]:
    """κ of each cluster: proportional to its speed, on average the job's `updates_per_round`, at least 1."""
    rates = [1.0 / cluster.interval_s for cluster in clusters]
    total = spec.updates_per_round * len(rates) / sum(rates)
    return tuple(max(1, int(rate * total + 0.5)) for rate in rates)


def rounds_of(spec: JobSpec, table: LayerTable, clusters: Sequence[Draft]) -> Rounds:
    """What the clusters' rounds take: from it follows whether they train beside an averaging."""
    m = spec.microbatches_per_update
    return Rounds(
        round_updates(spec, clusters),
        tuple(m * cluster.interval_s for cluster in clusters),
        stopped_s=averaging_s(spec, table, clusters),
        beside_s=averaging_s(spec, table, clusters, LINK_SHARE),
        last=TOLD_IN if spec.kappa == ADAPTIVE else 0,
    )


def predicted_updates_per_s(
    spec: JobSpec, clusters: Sequence[ClusterPlan], peers: Mapping[PeerId, Capability]
) -> float | None:
    """Of clusters as planned, by what their peers offer now; None where one of them is not known."""
    if any(stage.peer not in peers for cluster in clusters for stage in cluster.stages):
        return None
    table = planning_table(spec)
    drafts = [
        draft_with_ranges(
            spec,
            table,
            [peers[stage.peer] for stage in cluster.stages],
            [(stage.lo, stage.hi) for stage in cluster.stages],
        )
        for cluster in clusters
    ]
    return updates_per_s(spec, table, drafts)


def updates_per_s(spec: JobSpec, table: LayerTable, clusters: Sequence[Draft]) -> float:
    """Predicted updates a second of all clusters together, with what they wait for averaging."""
    rounds = rounds_of(spec, table, clusters)
    return sum(rounds.kappas) / rounds.period_s(rounds.overlaps(spec.overlap))
