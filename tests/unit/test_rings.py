"""Segments of differently cut clusters, and one ring member's moves and refusals."""

from __future__ import annotations

import itertools

import pytest

from ravnest_p2p.core.errors import ChunkMismatchError, OurFault, PlanError
from ravnest_p2p.core.rings import (
    Accumulate,
    Finished,
    Member,
    Phase,
    Replace,
    RingRound,
    Segment,
    SendChunk,
    chunk_bounds,
    normalised,
    segments,
)
from ravnest_p2p.core.types import ClusterPlan, PeerId, StageAssignment


def cluster(*cuts: int) -> ClusterPlan:
    stages = [StageAssignment(PeerId("p"), lo, hi, 0) for lo, hi in itertools.pairwise(cuts)]
    return ClusterPlan(tuple(stages), 1)


def test_segments_are_the_union_of_all_cuts() -> None:
    assert segments([cluster(0, 4, 9), cluster(0, 2, 4, 9), cluster(0, 9)]) == [
        Segment(0, 2, (Member(0, 0), Member(1, 0), Member(2, 0))),
        Segment(2, 4, (Member(0, 0), Member(1, 1), Member(2, 0))),
        Segment(4, 9, (Member(0, 1), Member(1, 2), Member(2, 0))),
    ]


def test_one_cluster_has_rings_of_one() -> None:
    assert segments([cluster(0, 4, 9)]) == [Segment(0, 4, (Member(0, 0),)), Segment(4, 9, (Member(0, 1),))]
    assert segments([]) == []


@pytest.mark.parametrize(
    "second",
    [
        cluster(0, 4),
        cluster(1, 9),
        cluster(0, 5, 5, 9),
        cluster(0, 6, 3, 9),
        ClusterPlan((), 1),
        ClusterPlan((cluster(0, 4).stages[0], cluster(5, 9).stages[0]), 1),
    ],
)
def test_a_cluster_with_other_layers_is_refused(second: ClusterPlan) -> None:
    with pytest.raises(PlanError, match="cluster 1"):
        segments([cluster(0, 4, 9), second])


def test_chunk_bounds() -> None:
    assert chunk_bounds(10, 4) == [(0, 3), (3, 6), (6, 8), (8, 10)]
    assert chunk_bounds(2, 3) == [(0, 1), (1, 2), (2, 2)]
    assert chunk_bounds(0, 2) == [(0, 0), (0, 0)]
    with pytest.raises(OurFault):
        chunk_bounds(3, 0)


def test_normalised() -> None:
    assert normalised([3, 1, 0]) == (0.75, 0.25, 0.0)
    assert normalised([0, 0]) == (0.0, 0.0)
    for bad in ([-1.0, 2.0], [float("nan")], [float("inf"), 1.0]):
        with pytest.raises(OurFault):
            normalised(bad)


def test_the_moves_of_one_member_of_three() -> None:
    ring = RingRound(1, 3, [1, 2, 1])
    assert ring.scale == 0.5
    assert (ring.previous_rank, ring.next_rank) == (0, 2)
    assert ring.start() == [SendChunk(0, 1, Phase.REDUCE)]
    assert ring.chunk_received(0, 0) == [Accumulate(0), SendChunk(1, 0, Phase.REDUCE)]
    assert ring.chunk_received(1, 2) == [Accumulate(2), SendChunk(2, 2, Phase.GATHER)]
    assert ring.chunk_received(2, 1) == [Replace(1), SendChunk(3, 1, Phase.GATHER)]
    assert not ring.finished
    assert ring.chunk_received(3, 0) == [Replace(0), Finished()]
    assert ring.finished


@pytest.mark.parametrize(("size", "weights"), [(1, [5]), (1, [0]), (3, [0, 0, 0])])
def test_nothing_to_average_finishes_at_once(size: int, weights: list[float]) -> None:
    ring = RingRound(0, size, weights)
    assert ring.unchanged
    assert ring.start() == [Finished()]
    assert ring.finished
    with pytest.raises(ChunkMismatchError, match="nothing more"):
        ring.chunk_received(0, 0)


@pytest.mark.parametrize(("step", "chunk"), [(0, 0), (0, 1), (1, 2), (1, 0), (-1, 2), (0, 9)])
def test_a_wrong_chunk_is_refused_and_changes_nothing(step: int, chunk: int) -> None:
    ring = RingRound(0, 3, [1, 1, 1])
    ring.start()
    with pytest.raises(ChunkMismatchError, match="rank 0 of 3"):
        ring.chunk_received(step, chunk)
    assert ring.chunk_received(0, 2)[0] == Accumulate(2)
    with pytest.raises(ChunkMismatchError):
        ring.chunk_received(0, 2)


def test_misuse_is_our_fault() -> None:
    ring = RingRound(0, 2, [1, 1])
    with pytest.raises(OurFault, match="before"):
        ring.chunk_received(0, 1)
    ring.start()
    with pytest.raises(OurFault):
        ring.start()
    for rank, size, weights in ((2, 2, [1, 1]), (-1, 2, [1, 1]), (0, 2, [1])):
        with pytest.raises(OurFault):
            RingRound(rank, size, weights)
