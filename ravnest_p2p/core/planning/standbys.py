"""Which idle peer stands by for which primary.

Problem: a failure without a standby costs a cluster minutes, and there are fewer idle peers than stages.
Solution: each pair gains what it adds to its cluster's value; the best pair goes first, which takes the least
reliable peers of the most valuable clusters, and each later one counts with what its cluster gained before.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from ravnest_p2p.core.planning.layout import Cluster
from ravnest_p2p.core.planning.objective import failure_s, worth
from ravnest_p2p.core.planning.problem import Problem

TRIED = 24
"""Standbys that are compared for one primary, where there are more: the fastest whose memory suffices."""


def match_standbys(problem: Problem, clusters: Sequence[Cluster]) -> tuple[tuple[int, int], ...]:
    """(standby, primary), in order of gain; a peer that would gain nothing stays idle."""
    used = {peer for cluster in clusters for peer in cluster.peers}
    idle = [i for i in range(len(problem.peers)) if i not in used]
    idle.sort(key=lambda i: (-problem.peers[i].flops * problem.peers[i].uptime, i))
    heap: list[tuple[float, int, int, int]] = []
    rules = problem.rules
    for cluster in clusters:
        bare = worth(problem, cluster, {})
        loss = 1.0 / bare.availability
        for primary, (lo, hi) in zip(cluster.peers, cluster.ranges(problem.layers.count), strict=True):
            fails = problem.peers[primary].fails_per_s
            tried = 0
            for standby in idle:
                if not problem.fits(standby, lo, hi):
                    continue
                saved_s = rules.recover_s - failure_s(problem, primary, standby, lo, hi, bare.interval_s)
                if fails * saved_s > 0.0 or rules.standby_quota > 0.0:
                    heap.append((-bare.value * fails * saved_s / loss, primary, tried, standby))
                tried += 1
                if tried == TRIED:
                    break
    heapq.heapify(heap)
    found: list[tuple[int, int]] = []
    taken: set[int] = set()
    while heap and len(found) < len(idle):
        _, primary, _, standby = heapq.heappop(heap)
        if primary not in taken and standby not in taken:
            taken.update((primary, standby))
            found.append((standby, primary))
    return tuple(found)
