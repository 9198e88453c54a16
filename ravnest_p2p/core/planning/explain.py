"""Why a plan is worth what it is, and what would make it worth more.

Problem: a number and lists of peers convince nobody, and whoever owns a peer wants to know what a faster line
would bring. Solution: for each cluster the parts of its interval and which of them is the longest; for the
whole plan what averaging costs and by whom; and what-ifs, each judged by the objective itself on the same
clusters, so that every gain named is one that can be had at least.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ravnest_p2p.core.planning.layout import Cluster, Layout
from ravnest_p2p.core.planning.objective import (
    cluster_interval_s,
    round_trip_s,
    score,
    slowest_transfer,
    worth,
)
from ravnest_p2p.core.planning.problem import Layers, Peer, Problem
from ravnest_p2p.core.planning.search.cutter import Cutter
from ravnest_p2p.core.planning.search.finish import finished
from ravnest_p2p.core.planning.search.tables import tables_of

FASTER = 2.0
"""Times the uplink of a what-if."""

TRIED = 5
"""Ways to place one more peer that are judged in full."""


@dataclass(frozen=True, slots=True)
class Limit:
    """The longest of the parts of a cluster's interval.

    Attributes:
        kind: "compute", "line", "link", "latency", or "memory" where a stage computes longest because its
            neighbour has no memory for a layer more.
        stage: which one; of a link, the one before it; of latency, None.
        peer: whose; the one without memory; None for latency.
        seconds: of a micro-batch.
    """

    kind: str
    stage: int | None
    peer: int | None
    seconds: float


@dataclass(frozen=True, slots=True)
class WhatIf:
    """A change, and how many more effective samples a second it brings.

    Attributes:
        peer: whose uplink is faster; None for one more peer.
    """

    peer: int | None
    gain: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Of a whole plan.

    Attributes:
        limits: of each cluster.
        slowest: the peer on which every averaging waits; None with one cluster.
        uplinks: see `faster_uplinks`; `peer`: see `one_more`.
    """

    limits: tuple[Limit, ...]
    slowest: int | None
    uplinks: tuple[WhatIf, ...]
    peer: WhatIf


def explain(problem: Problem, layout: Layout) -> Explanation:
    """Why a feasible plan is worth what it is."""
    clusters = layout.clusters
    return Explanation(
        tuple(limit_of(problem, cluster) for cluster in clusters),
        slowest_transfer(problem, clusters)[1] if len(clusters) > 1 else None,
        tuple(faster_uplinks(problem, layout)),
        one_more(problem, layout),
    )


def limit_of(problem: Problem, cluster: Cluster) -> Limit:
    """What a cluster cannot be faster than."""
    longest = max(_parts(problem, cluster), key=lambda part: part.seconds)
    if longest.kind != "compute" or longest.stage is None:
        return longest
    full = _full_neighbour(problem, cluster, longest.stage)
    return longest if full is None else replace(longest, kind="memory", peer=full)


def faster_uplinks(problem: Problem, layout: Layout) -> list[WhatIf]:
    """What the same plan gains where one peer's uplink is `FASTER` times as fast; best first.

    Only peers that limit something are tried: their cluster, or every averaging.
    """
    before = score(problem, layout).objective
    limits = [limit_of(problem, cluster) for cluster in layout.clusters]
    candidates = {limit.peer for limit in limits if limit.kind in ("line", "link") and limit.peer is not None}
    if len(layout.clusters) > 1:
        candidates.add(slowest_transfer(problem, layout.clusters)[1])
    found = [
        WhatIf(peer, score(_with_uplink(problem, peer), layout).objective - before)
        for peer in sorted(candidates)
    ]
    return sorted((each for each in found if each.gain > 0.0), key=lambda each: (-each.gain, each.peer or 0))


def one_more(problem: Problem, layout: Layout) -> WhatIf:
    """What the plan gains by a peer that is like the median of those there are, put where it helps most.

    It joins a cluster, forms one of its own, or stands by.
    """
    peer = len(problem.peers)
    larger = replace(problem, peers=(*problem.peers, median_peer(problem)))
    before = score(problem, layout).objective
    candidates = [layout.clusters, *_with_member(larger, layout, peer)]
    gains = (score(larger, finished(larger, clusters)).objective - before for clusters in candidates)
    return WhatIf(None, max(0.0, *gains))


def median_peer(problem: Problem) -> Peer:
    """A peer of which everything is the median, in the region where most are."""

    def median(values: Iterator[float]) -> float:
        ordered = sorted(values)
        return ordered[len(ordered) // 2]

    peers = problem.peers
    regions = sorted(peer.region for peer in peers)
    return Peer(
        name="one more",
        region=max(regions, key=regions.count),
        memory_bytes=median(peer.memory_bytes for peer in peers),
        host_bytes=median(peer.host_bytes for peer in peers),
        flops=median(peer.flops for peer in peers),
        up_bytes_s=median(peer.up_bytes_s for peer in peers),
        down_bytes_s=median(peer.down_bytes_s for peer in peers),
        access_s=median(peer.access_s for peer in peers),
        fails_per_s=median(peer.fails_per_s for peer in peers),
        uptime=median(peer.uptime for peer in peers),
        held=(0, 0),
    )


def _parts(problem: Problem, cluster: Cluster) -> Iterator[Limit]:
    layers = problem.layers
    ranges = cluster.ranges(layers.count)
    for s, (i, (lo, hi)) in enumerate(zip(cluster.peers, ranges, strict=True)):
        peer = problem.peers[i]
        yield Limit("compute", s, i, _compute_s(layers, peer, lo, hi))
        yield Limit("line", s, i, (layers.crossing[lo] + layers.crossing[hi]) / peer.bytes_s)
        if s + 1 < len(ranges):
            flow_bytes_s = problem.flow_between(i, cluster.peers[s + 1])
            yield Limit("link", s, i, layers.crossing[hi] / flow_bytes_s)
    yield Limit("latency", None, None, round_trip_s(problem, cluster) / problem.rules.window)


def _compute_s(layers: Layers, peer: Peer, lo: int, hi: int) -> float:
    return (layers.work[hi] - layers.work[lo]) / peer.flops


def _full_neighbour(problem: Problem, cluster: Cluster, stage: int) -> int | None:
    """A neighbour that would take a layer off the stage and make the cluster faster, had it the memory."""
    now_s = cluster_interval_s(problem, cluster)
    for cut, moved in ((stage - 1, 1), (stage, -1)):
        if not 0 <= cut < len(cluster.cuts):
            continue
        cuts = list(cluster.cuts)
        cuts[cut] += moved
        other = Cluster(cluster.peers, tuple(cuts))
        ranges = other.ranges(problem.layers.count)
        if any(hi <= lo for lo, hi in ranges) or cluster_interval_s(problem, other) >= now_s:
            continue
        taker = stage - 1 if moved == 1 else stage + 1
        if not problem.fits(cluster.peers[taker], *ranges[taker]):
            return cluster.peers[taker]
    return None


def _with_uplink(problem: Problem, peer: int) -> Problem:
    peers = list(problem.peers)
    peers[peer] = peers[peer]._replace(up_bytes_s=FASTER * peers[peer].up_bytes_s)
    return replace(problem, peers=tuple(peers))


def _with_member(problem: Problem, layout: Layout, peer: int) -> list[tuple[Cluster, ...]]:
    """The clusters with one peer more; the most promising ways."""
    cutter, backed = Cutter(tables_of(problem)), {primary: standby for standby, primary in layout.standbys}
    transfer_s = slowest_transfer(problem, layout.clusters)[0]
    ways: list[tuple[float, int, Cluster]] = []
    for n, cluster in enumerate(layout.clusters):
        now = worth(problem, cluster, backed).value
        for at in range(len(cluster.peers) + 1):
            value, grown = cutter.cut([*cluster.peers[:at], peer, *cluster.peers[at:]], transfer_s)
            if grown is not None and len(grown.peers) <= problem.rules.most_stages:
                ways.append((value - now, n, grown))
    value, alone = cutter.cut([peer], transfer_s)
    if alone is not None and len(layout.clusters) < problem.rules.most_clusters:
        ways.append((value, len(layout.clusters), alone))
    ways.sort(key=lambda way: (-way[0], way[1], way[2].peers))
    return [(*layout.clusters[:n], grown, *layout.clusters[n + 1 :]) for _, n, grown in ways[:TRIED]]
