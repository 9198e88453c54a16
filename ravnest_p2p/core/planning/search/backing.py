"""What idle peers add to clusters by standing by: a bound that costs little, and the best of all ways.

A cluster's loss is a sum over its stages, and a standby lowers the part of the stage that it stands by for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ravnest_p2p.core.planning.layout import Cluster
from ravnest_p2p.core.planning.objective import failure_s, standbys_wanted, worth
from ravnest_p2p.core.planning.problem import Problem


class Backing(NamedTuple):
    """Of one cluster and some idle peers.

    Attributes:
        sure: what the cluster is worth if nothing ever fails.
        loss: as it is without standbys.
        gains: by idle peer and stage, by how much the loss falls; below 0 where the stage does not fit.
    """

    sure: float
    loss: float
    gains: tuple[tuple[float, ...], ...]

    def value(self, gained: float) -> float:
        """With the loss lowered by so much."""
        return self.sure / (1.0 + self.loss - gained)

    @property
    def most(self) -> float:
        """Value at most, for an idle peer stands by for one stage, and a stage has one standby."""
        by_peer = sum(max(0.0, *each) for each in self.gains)
        by_stage = sum(max(0.0, *each) for each in zip(*self.gains, strict=True))
        return self.value(min(by_peer, by_stage))


Standbys = tuple[tuple[int, int], ...]


def backing(problem: Problem, cluster: Cluster, idle: Sequence[int]) -> Backing:
    """What these peers could add to the cluster."""
    bare = worth(problem, cluster, {})
    stages = list(zip(cluster.peers, cluster.ranges(problem.layers.count), strict=True))

    def gain(standby: int, primary: int, lo: int, hi: int) -> float:
        if not problem.fits(standby, lo, hi):
            return -1.0
        with_it_s = failure_s(problem, primary, standby, lo, hi, bare.interval_s)
        return problem.peers[primary].fails_per_s * (problem.rules.recover_s - with_it_s)

    return Backing(
        bare.value / bare.availability,
        1.0 / bare.availability - 1.0,
        tuple(tuple(gain(q, p, lo, hi) for p, (lo, hi) in stages) for q in idle),
    )


def best_backing(
    problem: Problem, clusters: Sequence[Cluster], idle: Sequence[int], backings: Sequence[Backing]
) -> tuple[float, Standbys]:
    """The best of all ways to let these peers stand by: what the clusters are worth, and (standby, primary).

    Of a plan that needs standbys, a way with too few of them comes after all others.
    """
    wanted = standbys_wanted(problem, sum(len(cluster.peers) for cluster in clusters))
    options = [
        [
            (c, cluster.peers[s], each.gains[n][s])
            for c, (cluster, each) in enumerate(zip(clusters, backings, strict=True))
            for s in range(len(cluster.peers))
            # Where no standby is wanted, one that adds nothing stays idle.
            if each.gains[n][s] > 0.0 or (wanted and each.gains[n][s] == 0.0)
        ]
        for n in range(len(idle))
    ]
    gained = [0.0] * len(clusters)
    taken: dict[int, int] = {}
    best: tuple[tuple[bool, float], Standbys] | None = None

    def judge() -> None:
        nonlocal best
        value = sum(each.value(gain) for each, gain in zip(backings, gained, strict=True))
        key = (len(taken) >= wanted, value)
        if best is None or key > best[0]:
            best = key, tuple((standby, primary) for primary, standby in sorted(taken.items()))

    def extend(n: int) -> None:
        if n == len(idle):
            judge()
            return
        extend(n + 1)
        for c, primary, gain in options[n]:
            if primary not in taken:
                taken[primary] = idle[n]
                before, gained[c] = gained[c], gained[c] + gain
                extend(n + 1)
                gained[c] = before
                del taken[primary]

    extend(0)
    assert best is not None
    return best[0][1], best[1]
