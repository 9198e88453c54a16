"""Averaging clusters that cut the model differently: which peers hold the same layers.

Problem: copies of one model are each split among other peers at other layers. Solution: the union of all
clusters' cuts divides the layers into segments, each of them within one stage of every cluster; the holders
of a segment average it among themselves (`round`), all segments at once.

    cluster A  │ stage 0          │ stage 1                 │
    cluster B  │ stage 0   │ stage 1         │ stage 2      │
    segments   │     0     │  1   │    2     │      3       │

Source: arXiv 2401.01728, Parallel Multi-Ring All-Reduce.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from ravnest_p2p.core.errors import OurFault, PlanError
from ravnest_p2p.core.types import ClusterPlan


class Member(NamedTuple):
    """The holder of a segment in one cluster."""

    cluster: int
    stage: int


@dataclass(frozen=True, slots=True)
class Segment:
    """Layers [lo, hi), which no cluster cuts, and their holders: one of each cluster, in ring order."""

    lo: int
    hi: int
    members: tuple[Member, ...]


def segments(clusters: Sequence[ClusterPlan], order: Sequence[int] = ()) -> list[Segment]:
    """The segments of a job in layer order.

    Args:
        order: numbers of the clusters in the order of their rings; empty for the order of the numbers.
    Raises:
        PlanError: a cluster does not hold the same layers as the others, each once, in order; or `order` does
            not name each cluster once.
    """
    order = order or range(len(clusters))
    if sorted(order) != list(range(len(clusters))):
        raise PlanError(f"the rings are no order of {len(clusters)} clusters")
    for number, cluster in enumerate(clusters):
        stages = cluster.stages
        joins = all(a.hi == b.lo for a, b in pairwise(stages))
        if not stages or not joins or any(stage.lo >= stage.hi for stage in stages):
            raise PlanError(f"the stages of cluster {number} are not a chain of layers")
        first = clusters[0].stages
        if (stages[0].lo, stages[-1].hi) != (first[0].lo, first[-1].hi):
            raise PlanError(f"cluster {number} holds other layers than cluster 0")
    cuts = sorted({cut for c in clusters for stage in c.stages for cut in (stage.lo, stage.hi)})
    return [
        Segment(
            lo,
            hi,
            tuple(
                Member(c, s)
                for c in order
                for s, stage in enumerate(clusters[c].stages)
                if stage.lo <= lo and hi <= stage.hi
            ),
        )
        for lo, hi in pairwise(cuts)
    ]


def chunk_bounds(elements: int, size: int) -> list[tuple[int, int]]:
    """Cut [0, elements) into `size` chunks of nearly equal length, the longer ones first."""
    if elements < 0 or size < 1:
        raise OurFault(f"{elements} elements in {size} chunks")
    starts = [c * (elements // size) + min(c, elements % size) for c in range(size + 1)]
    return list(pairwise(starts))


def normalised(weights: Sequence[float]) -> tuple[float, ...]:
    """Weights that sum to 1, or all zeros where nobody trained.

    Raises:
        OurFault: a weight is negative or not finite.
    """
    if any(not math.isfinite(w) or w < 0 for w in weights):
        raise OurFault(f"weights must be finite and not negative: {list(weights)}")
    total = math.fsum(weights)
    return tuple(w / total for w in weights) if total else tuple(0.0 for _ in weights)


def shares(weights: Sequence[float], live: Sequence[int]) -> list[float]:
    """Of those who live, in their order. Where all who trained are dead, the rest count alike."""
    total = math.fsum(weights[rank] for rank in live)
    return [weights[rank] / total if total else 1 / len(live) for rank in live]


def shares_before(rank: int, weights: Sequence[float], live: Sequence[int]) -> list[float]:
    """The `shares` of the others, in their order, and then that of `rank`: as a member adds them up."""
    found = shares(weights, live)
    found.append(found.pop(live.index(rank)))
    return found
