"""A broken generation's clusters with as few peers moved as possible.

Problem: forming clusters anew after one death would move state between peers that are well. Solution: keep
every cluster and its order, put a spare in the place of each peer that is gone, standbys first (they hold the
pieces), and cut only the changed clusters anew. Where no spare fits, only the whole clusters go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ravnest_p2p.core.capability import link_bps
from ravnest_p2p.core.planning.cost import (
    Draft,
    draft_cluster,
    draft_with_ranges,
    lowest_staleness,
    planning_table,
    stage_need_bytes,
)
from ravnest_p2p.core.planning.cuts import MIN_FLOPS, LayerTable
from ravnest_p2p.core.types import Capability, ClusterPlan, JobPlan, JobSpec, PeerId

MAX_SPARES_TRIED = 8


def repaired(
    spec: JobSpec, old: JobPlan, free: Mapping[PeerId, Capability], memory_scale: float = 1.0
) -> tuple[Draft, ...]:
    """Those of the old clusters that can go on with the free peers, in their old order.

    Args:
        old: the broken generation's plan.
        free: live peers that no other job uses, the surviving members among them.
        memory_scale: what its stages take over the estimate, as measured.
    Returns:
        A draft for each cluster that is whole or could be filled up; the others are left out.
    """
    table = planning_table(spec, memory_scale)
    members = set(old.peers)
    standbys = [peer for peer in old.standbys if peer in free and peer not in members]
    others = sorted(
        (peer for peer in free if peer not in members and peer not in standbys),
        key=lambda peer: (-free[peer].flops * link_bps(free[peer]), peer),
    )
    spares = [*standbys, *others]
    drafts: list[Draft] = []
    for cluster in old.clusters:
        draft = _kept(spec, table, cluster, free) or _filled(spec, table, cluster, free, spares)
        if draft is not None:
            spares = [peer for peer in spares if peer not in draft.ids]
            drafts.append(draft)
    return tuple(drafts)


def _kept(
    spec: JobSpec, table: LayerTable, cluster: ClusterPlan, free: Mapping[PeerId, Capability]
) -> Draft | None:
    """The cluster with its old cuts, if all its peers are there and still have the memory."""
    stages = len(cluster.stages)
    for s, stage in enumerate(cluster.stages):
        peer = free.get(stage.peer)
        lowest = lowest_staleness(spec, s, stages)
        if peer is None or peer.flops < MIN_FLOPS:
            return None
        if stage_need_bytes(spec, table, s, stages, stage.lo, stage.hi, lowest) > peer.memory_bytes:
            return None
    peers = [free[stage.peer] for stage in cluster.stages]
    return draft_with_ranges(spec, table, peers, [(stage.lo, stage.hi) for stage in cluster.stages])


def _filled(
    spec: JobSpec,
    table: LayerTable,
    cluster: ClusterPlan,
    free: Mapping[PeerId, Capability],
    spares: Sequence[PeerId],
) -> Draft | None:
    """The cluster with spares in the places of the gone, cut anew; spares are tried in order."""
    gone = [n for n, stage in enumerate(cluster.stages) if stage.peer not in free]
    for start in range(min(MAX_SPARES_TRIED, len(spares) - len(gone) + 1)):
        fill = dict(zip(gone, spares[start:], strict=False))
        order = [free[fill.get(n, stage.peer)] for n, stage in enumerate(cluster.stages)]
        draft = draft_cluster(spec, table, order)
        if draft is not None:
            return draft
    return None
