"""In which order clusters form rings, and whether one ring or a grid.

Problem: an averaging takes a step of latency for each member of a ring, and each step is as slow as its
slowest hop. Solution: a chain in which each cluster is followed by the nearest one left, so that
neighbours in a row are near; then the number of columns for which rows and columns together take least.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ravnest_p2p.core.planning.layout import Cluster
from ravnest_p2p.core.planning.objective import access_by_region
from ravnest_p2p.core.planning.problem import Problem
from ravnest_p2p.core.planning.search.tables import Floats, Ints

NEAR_SQUARE = 4
"""Grids are tried that are up to this many times as wide, or as high, as a square; and the one ring."""


def ring_order(problem: Problem, clusters: Sequence[Cluster]) -> tuple[tuple[int, ...], int]:
    """Order of the clusters, and columns."""
    count = len(clusters)
    if count < 2:
        return tuple(range(count)), 1
    hops = _Hops(problem, clusters)
    chain, left = [0], np.ones(count, np.bool_)
    left[0] = False
    for _ in range(count - 1):
        following = int(np.argmin(np.where(left, hops.from_one(chain[-1]), np.inf)))
        chain.append(following)
        left[following] = False
    side = math.isqrt(count)
    widths = {count, *range(max(1, side // NEAR_SQUARE), min(count, (side + 1) * NEAR_SQUARE) + 1)}
    order = np.array(chain)
    return tuple(chain), min(sorted(widths), key=lambda columns: _steps_s(hops, order, columns))


class _Hops:
    """Seconds between the slowest two members of any two clusters, without a table of all pairs."""

    def __init__(self, problem: Problem, clusters: Sequence[Cluster]) -> None:
        self._access = np.full((len(clusters), len(problem.latency_s)), -np.inf)
        for n, cluster in enumerate(clusters):
            for region, access_s in access_by_region(problem, cluster).items():
                self._access[n, region] = access_s
        latency = np.array(problem.latency_s)
        self._to_region = np.array([(latency + own[:, None]).max(axis=0) for own in self._access])

    def from_one(self, cluster: int) -> Floats:
        """(C,), to each cluster."""
        to_each: Floats = (self._to_region[cluster] + self._access).max(axis=1)
        return to_each

    def longest(self, ones: Ints, others: Ints) -> float:
        """Of these pairs of clusters."""
        return float((self._to_region[ones] + self._access[others]).max())


def _steps_s(hops: _Hops, order: Ints, columns: int) -> float:
    rows = [order[at : at + columns] for at in range(0, order.size, columns)]
    along_s = max(_ring_s(hops, row) for row in rows)
    total = 2.0 * (columns - 1) * along_s
    if len(rows) > 1:
        below = np.array([row[np.arange(columns) % row.size] for row in rows])
        total += 2.0 * (len(rows) - 1) * hops.longest(below, np.roll(below, -1, axis=0))
    return total


def _ring_s(hops: _Hops, ring: Ints) -> float:
    return hops.longest(ring, np.roll(ring, -1)) if ring.size > 1 else 0.0
