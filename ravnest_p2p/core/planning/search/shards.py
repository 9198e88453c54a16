"""Plans for more peers than one search can hold.

Problem: a search of ten thousand peers at once needs moves by the square of what a thousand need.
Solution: shards that are alike, dealt from the peers in order of speed, so that each has its share of
every kind. One of them finds the averaging's slowest transfer Q, which all have in common; then each is
searched with it, and their clusters are one plan.
"""

from __future__ import annotations

from dataclasses import replace

from ravnest_p2p.core.planning.layout import Cluster, Layout
from ravnest_p2p.core.planning.problem import Problem
from ravnest_p2p.core.planning.search.effort import effort_for
from ravnest_p2p.core.planning.search.finish import finished
from ravnest_p2p.core.planning.search.memetic import Progress, Search

SHARD = 1000
"""Peers of a shard, about."""

MOST_AT_ONCE = 2000


def search_shards(problem: Problem, seed: int, budget: str, progress: Progress) -> Layout:
    """A plan of shards.

    Raises:
        PlanError: no cluster fits.
    """
    peers = problem.peers
    by_speed = sorted(range(len(peers)), key=lambda i: (-peers[i].flops, -peers[i].bytes_s, i))
    count = -(-len(peers) // SHARD)
    shards = [sorted(by_speed[n::count]) for n in range(count)]
    rules = replace(
        problem.rules, least_clusters=1, most_clusters=max(1, problem.rules.most_clusters // count)
    )
    clusters: list[Cluster] = []
    transfer_s: float | None = None
    for n, shard in enumerate(shards):
        part = replace(problem, rules=rules, peers=tuple(peers[i] for i in shard))
        search = Search(part, seed + n, effort_for(len(shard), budget), progress)
        if transfer_s is None:
            transfer_s = search.scout()
        found = search.parent(transfer_s)
        clusters += [
            Cluster(tuple(shard[i] for i in cluster.peers), cluster.cuts) for cluster in found.layout.clusters
        ]
        progress(f"shard {n + 1} of {count}", 0.0)
    return finished(problem, clusters)
