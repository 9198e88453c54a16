"""Propose a split over given peers, by the planner's own search.

Problem: a proposal that the swarm's planner would not make is worth nothing. Solution: the same dynamic
programming over the same costs and memory needs; only the peers come from the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ravnest_p2p.core.errors import PlanningError
from ravnest_p2p.core.planning.clusters import ClusterSearch
from ravnest_p2p.core.planning.cost import Draft, draft_cluster, planning_table
from ravnest_p2p.core.planning.memory import PROCESS_OVERHEAD_BYTES
from ravnest_p2p.core.types import Capability, Coordinate, Device, PeerId, Reachability
from ravnest_p2p.core.wording import bytes_text
from ravnest_p2p.model.requirements import Requirements

_AMPLE_BYTES = 1 << 46
_FAST_BPS = 1e13
_FLOPS = 1e10


def a_peer(
    name: str,
    *,
    memory_bytes: int = _AMPLE_BYTES,
    flops: float = _FLOPS,
    up_bps: float = _FAST_BPS,
    down_bps: float = _FAST_BPS,
) -> Capability:
    """A capability for asking "what if": no latency, and links that take no time unless told."""
    return Capability(
        peer=PeerId(name),
        version="",
        devices=(Device("cpu", memory_bytes, flops),),
        up_bps=up_bps,
        down_bps=down_bps,
        coordinate=Coordinate((0.0, 0.0), 0.0, 1.0),
        reachability=Reachability.PUBLIC,
        uptime_s=0.0,
        reliability=1.0,
    )


def equal_peers(count: int) -> list[Capability]:
    """Peers of one speed, with memory and links without bounds."""
    return [a_peer(f"peer {n}") for n in range(count)]


def fit(needs: Requirements, peers: Sequence[Capability], *, any_order: bool = False) -> Draft:
    """The best cuts for these peers: slowest stage first, then bytes over the cuts, within every memory.

    Args:
        peers: one for each stage, in pipeline order.
        any_order: the planner may put them in another order.
    Raises:
        PlanningError: no cuts fit; says what is missing.
    """
    spec = needs.terms.job(needs.layers, len(peers))
    if not peers:
        raise PlanningError("a split needs one peer at least")
    if len(peers) > len(needs.layers):
        raise PlanningError(
            f"{len(peers)} stages of a model that can only be cut into {len(needs.layers)} layers"
        )
    if any_order:
        formation = ClusterSearch(spec, peers).best(clusters=1)
        draft = None if formation is None else formation.clusters[0]
    else:
        draft = draft_cluster(spec, planning_table(spec), peers)
    if draft is None:
        raise PlanningError(_missing(needs, peers))
    return draft


def cuts_of(draft: Draft) -> list[int]:
    """Layer indices at which stages 1, 2, … start."""
    return [lo for (_, lo), _ in pairwise(draft.ranges)]


def _missing(needs: Requirements, peers: Sequence[Capability]) -> str:
    stages = len(peers)
    offered = sum(peer.memory_bytes for peer in peers)
    least = needs.whole.memory.needed + (stages - 1) * PROCESS_OVERHEAD_BYTES
    alone = [needs.need(n, n + 1) for n in range(len(needs.layers))]
    heaviest = max(alone, key=lambda need: need.memory.needed)
    return (
        f"no split over {stages} peer{'s' * (stages > 1)} fits: offered are {bytes_text(offered)}, the model "
        f"needs about {bytes_text(least)}, and its heaviest layer ({heaviest.name or heaviest.lo}) alone "
        f"{bytes_text(heaviest.memory.needed)}; add peers or memory, or make the micro-batch smaller"
    )
