"""A job and the peers of a swarm as a planning problem, for the search.

Problem: the search knows memory as sums over layers and latency as a table of regions, while what a stage
takes depends on its place, and peers have coordinates. Solution: a likeness. Sums stand for a stage in
the middle of a pipeline, cells of the coordinate space for regions. Who is grouped with whom, and in
which order, is found on it; cuts, memory and staleness of what was found are then worked out exactly
(`cost.draft_cluster`).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import dist, floor

from ravnest_p2p.core.averaging import bytes_share
from ravnest_p2p.core.capability import ASSUMED_BPS
from ravnest_p2p.core.pipeline.correction import correction_bytes
from ravnest_p2p.core.planning.cost import averaging_copies, may_remake, staleness_limit
from ravnest_p2p.core.planning.cuts import MIN_FLOPS, LayerTable
from ravnest_p2p.core.planning.memory import optimizer_slots, speculative_copies, tensor_room_bytes
from ravnest_p2p.core.planning.problem import Layers, Peer, Problem, Rules
from ravnest_p2p.core.planning.recompute import NEVER
from ravnest_p2p.core.types import Capability, JobSpec, PeerId

CELL_S, MOST_CELLS = 0.005, 256
"""Side of a region; it doubles while there are more."""

TYPICAL_WINDOW = 4
"""Micro-batches in flight at a stage in the middle of a pipeline."""

FLOW_BYTES_S = 1e12
"""No measured bound on single flows."""

EPOCH_S, FAILOVER_S, RECOVER_S = 3600.0, 10.0, 60.0
"""What moves and failures are weighed by: usual times of this system."""

STAGE_DISCOUNT = SPREAD_DISCOUNT = 0.01

RELIABLE_AFTER_S = 3600.0
"""A peer of reliability r fails once in so long over 1 − r."""

NO_BOUND_S = 1e30


def problem_of(
    spec: JobSpec,
    table: LayerTable,
    peers: Sequence[Capability],
    *,
    most_stages: int,
    clusters: int = 0,
    held: Mapping[PeerId, tuple[int, int]] | None = None,
) -> Problem:
    """The likeness.

    Args:
        table: of the job's layers; the blocks between its cuts become the problem's layers.
        most_stages: of a cluster, where the job does not say how many it wants.
        clusters: wanted number; 0 for any.
        held: layers [lo, hi) that peers have already; None where all have to fetch, or nobody.
    """
    cells = _cells(peers)
    places = sorted(set(cells))
    index = {place: n for n, place in enumerate(places)}
    layers = _layers(spec, table)
    ways_s = tuple(tuple(dist(a, b) / 2.0 for b in places) for a in places)
    members = tuple(
        _peer(peer, index[cell], table, (held or {}).get(peer.peer))
        for peer, cell in zip(peers, cells, strict=True)
    )
    flow = (FLOW_BYTES_S,) * len(places)
    rules = _rules(spec, layers, members, most_stages, clusters, moves_are_free=held is None)
    return Problem(layers, rules, ways_s, (flow,) * len(places), members)


def _layers(spec: JobSpec, table: LayerTable) -> Layers:
    blocks = list(zip(table.cuts, table.cuts[1:], strict=False))
    params = [table.param_bytes(lo, hi) for lo, hi in blocks]
    kept = 2 + optimizer_slots(spec.optimizer) + averaging_copies(spec)
    sent_share = bytes_share(spec.averaging, spec.average_momentum)
    early = speculative_copies(1, spec.microbatches_per_update, last=False)
    state = [kept * size + early * correction_bytes(spec.staleness_correction, size, 0) for size in params]
    window = 1 + min(staleness_limit(spec), TYPICAL_WINDOW - 1)
    held = [
        size + window * _activation_bytes(spec, table, lo, hi)
        for size, (lo, hi) in zip(state, blocks, strict=True)
    ]

    def sums(values: Sequence[float]) -> tuple[float, ...]:
        return tuple(accumulate(values, initial=0.0))

    return Layers(
        len(blocks),
        sums([max(table.flops(lo, hi), MIN_FLOPS) for lo, hi in blocks]),
        sums([sent_share * size for size in params]),
        sums([(1 + optimizer_slots(spec.optimizer)) * size for size in params]),
        sums(state),
        sums(held),
        tuple(float(table.cut_bytes(at)) for at in table.cuts),
    )


def _activation_bytes(spec: JobSpec, table: LayerTable, lo: int, hi: int) -> int:
    """Of a micro-batch; where the job allows to recompute, what enters the block is the least kept."""
    if spec.checkpoint != NEVER:
        return table.cut_bytes(lo)
    return table.activation_bytes(lo, hi) - (table.remade_bytes(lo, hi) if may_remake(spec) else 0)


def _rules(
    spec: JobSpec,
    layers: Layers,
    peers: Sequence[Peer],
    most_stages: int,
    clusters: int,
    *,
    moves_are_free: bool,
) -> Rules:
    usual_flops = statistics.median(peer.flops for peer in peers)
    usual_bytes = max(1.0, statistics.median(peer.memory_bytes for peer in peers))
    stages = spec.stages or min(most_stages, max(1, round(layers.held_bytes[-1] / usual_bytes)))
    round_s = spec.updates_per_round * spec.microbatches_per_update * layers.work[-1] / (stages * usual_flops)
    return Rules(
        microbatch=float(spec.microbatch_size),
        window=1.0 + staleness_limit(spec),
        round_s=round_s,
        epoch_s=EPOCH_S,
        least_stages=spec.stages or 1,
        most_stages=spec.stages or most_stages,
        least_clusters=clusters or 1,
        most_clusters=clusters or len(peers),
        slowest_s=NO_BOUND_S,
        stage_discount=STAGE_DISCOUNT,
        spread_discount=SPREAD_DISCOUNT,
        failover_s=FAILOVER_S,
        recover_s=RECOVER_S,
        standby_quota=0.0,
        moves_are_free=moves_are_free,
    )


def _peer(peer: Capability, region: int, table: LayerTable, held: tuple[int, int] | None) -> Peer:
    lo, hi = (0, 0) if held is None else held
    return Peer(
        name=peer.peer,
        region=region,
        memory_bytes=tensor_room_bytes(peer.memory_bytes / table.memory_scale),
        host_bytes=0.0,
        flops=max(peer.flops, MIN_FLOPS),
        up_bytes_s=(peer.up_bps or ASSUMED_BPS) / 8.0,
        down_bytes_s=(peer.down_bps or ASSUMED_BPS) / 8.0,
        access_s=peer.coordinate.height_s / 2.0,
        fails_per_s=(1.0 - peer.reliability) / RELIABLE_AFTER_S,
        uptime=peer.reliability,
        held=(_block(table, lo), _block(table, hi)),
    )


def _block(table: LayerTable, layer: int) -> int:
    """Index of the last cut at or before a layer."""
    return max(n for n, at in enumerate(table.cuts) if at <= layer)


def _cells(peers: Sequence[Capability]) -> list[tuple[float, ...]]:
    """For each peer the middle of the cell that its coordinate lies in."""
    side_s = CELL_S
    while True:
        cells = [tuple(side_s * (floor(x / side_s) + 0.5) for x in peer.coordinate.vector) for peer in peers]
        if len(set(cells)) <= MOST_CELLS:
            return cells
        side_s *= 2.0
