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
    hops = _hops(problem, clusters)
    chain, left = [0], np.ones(count, np.bool_)
    left[0] = False
    for _ in range(count - 1):
        following = int(np.argmin(np.where(left, hops[chain[-1]], np.inf)))
        chain.append(following)
        left[following] = False
    side = math.isqrt(count)
    widths = {count, *range(max(1, side // NEAR_SQUARE), min(count, (side + 1) * NEAR_SQUARE) + 1)}
    order = np.array(chain)
    return tuple(chain), min(sorted(widths), key=lambda columns: _steps_s(hops, order, columns))


def _hops(problem: Problem, clusters: Sequence[Cluster]) -> Floats:
    """(C, C), seconds between the slowest two members."""
    access = np.full((len(clusters), len(problem.latency_s)), -np.inf)
    for n, cluster in enumerate(clusters):
        for region, access_s in access_by_region(problem, cluster).items():
            access[n, region] = access_s
    latency = np.array(problem.latency_s)
    hops = np.empty((len(clusters), len(clusters)))
    for n, own in enumerate(access):
        to_region = (latency + own[:, None]).max(axis=0)
        hops[n] = (to_region + access).max(axis=1)
    return hops


def _steps_s(hops: Floats, order: Ints, columns: int) -> float:
    rows = [order[at : at + columns] for at in range(0, order.size, columns)]
    along_s = max(_ring_s(hops, row) for row in rows)
    total = 2.0 * (columns - 1) * along_s
    if len(rows) > 1:
        below = np.array([row[np.arange(columns) % row.size] for row in rows])
        total += 2.0 * (len(rows) - 1) * float(hops[below, np.roll(below, -1, axis=0)].max())
    return total


def _ring_s(hops: Floats, ring: Ints) -> float:
    return float(hops[ring, np.roll(ring, -1)].max()) if ring.size > 1 else 0.0
