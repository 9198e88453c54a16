"""Segments of differently cut clusters, the ways of chunks, and one member's moves and refusals."""

from __future__ import annotations

import itertools

import pytest

from ravnest_p2p.core.errors import ChunkMismatchError, OurFault, PlanError
from ravnest_p2p.core.rings import (
    Formed,
    Grid,
    Hop,
    Kind,
    Member,
    Outcome,
    Ring,
    Segment,
    SegmentRound,
    Star,
    Ways,
    chunk_bounds,
    neighbours,
    normalised,
    segments,
    ways,
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


def test_members_stand_in_the_order_of_the_rings() -> None:
    clusters = [cluster(0, 4, 9), cluster(0, 2, 9), cluster(0, 9)]
    found = segments(clusters, (2, 0, 1))
    assert [(segment.lo, segment.hi) for segment in found] == [(0, 2), (2, 4), (4, 9)]
    assert found[1].members == (Member(2, 0), Member(0, 0), Member(1, 1))
    assert segments(clusters, (0, 1, 2)) == segments(clusters)
    for wrong in ((0, 1), (0, 1, 1), (0, 1, 3), (1, 2, 3)):
        with pytest.raises(PlanError, match="no order of 3 clusters"):
            segments(clusters, wrong)


def test_more_columns_than_members_are_one_ring() -> None:
    assert ways(5, 5) == ways(5, 9) == ways(5, 1) == Ring(5)
    assert isinstance(ways(5, 4), Grid)


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


def test_the_ways_of_a_ring_of_three() -> None:
    ring = Ring(3)
    assert [ring.hop(0, place) for place in range(3)] == [
        Hop(takes=(), gives=1, source=2, passes=(1,), sum_togo=4, mean_togo=1),
        Hop(takes=(0,), gives=2, source=0, passes=(), sum_togo=3, mean_togo=0),
        Hop(takes=(1,), gives=None, source=None, passes=(0,), sum_togo=2, mean_togo=2),
    ]
    assert neighbours(ring, 1) == ({0}, {2})
    assert Ring(1).hop(0, 0) == Hop((), None, None, (), 0, 0)


SHAPES = [(size, columns) for size in range(1, 14) for columns in range(1, size + 1)]


@pytest.mark.parametrize(
    ("found", "size"),
    [(ways(*shape), shape[0]) for shape in SHAPES] + [(Star(size), size) for size in range(1, 14)],
)
def test_every_way_sums_each_member_once_and_comes_to_all(found: Ways, size: int) -> None:
    for way in range(found.count):
        hops = [found.hop(way, place) for place in range(size)]
        (end,) = [place for place, hop in enumerate(hops) if hop.gives is None]
        assert hops[end].source is None
        for place, hop in enumerate(hops):
            assert all(hops[taken].gives == place for taken in hop.takes)
            assert hop.gives is None or place in hops[hop.gives].takes
            assert all(hops[given].source == place for given in hop.passes)
            assert hop.source is None or place in hops[hop.source].passes
            assert hop.mean_togo == max((1 + hops[given].mean_togo for given in hop.passes), default=0)
            mean = hops[end].mean_togo
            assert hop.sum_togo == (mean if hop.gives is None else 1 + hops[hop.gives].sum_togo)
        assert set(_up(hops, end)) == set(_down(hops, end)) == set(range(size))
    assert all(found.hop(found.completed_by(place), place).source is None for place in range(size))


def _up(hops: list[Hop], place: int) -> list[int]:
    return [place, *(found for taken in hops[place].takes for found in _up(hops, taken))]


def _down(hops: list[Hop], place: int) -> list[int]:
    return [place, *(found for given in hops[place].passes for found in _down(hops, given))]


@pytest.mark.parametrize(("size", "columns"), [(12, 4), (13, 4), (1000, 32)])
def test_a_grid_takes_rows_and_columns_of_steps_and_no_more_bytes(size: int, columns: int) -> None:
    grid, rows = Grid(size, columns), -(-size // columns)
    places = range(size) if size < 100 else (0, 500, 999)
    hops = {place: [grid.hop(way, place) for way in range(grid.count)] for place in places}
    steps = 2 * (columns - 1 + rows - 1)
    most = max(hop.sum_togo for its in hops.values() for hop in its)
    assert most == steps if size % columns == 0 else steps - 1 <= most <= steps
    sent = [sum((hop.gives is not None) + len(hop.passes) for hop in its) for its in hops.values()]
    assert max(sent) <= 1.02 * 2 * (size - 1) / size * grid.count, "as a ring does"
    if size % columns == 0:
        assert sent == [2 * (size - 1)] * len(sent)


def test_a_star_takes_two_hops_and_no_more_bytes_than_a_ring() -> None:
    star = Star(4)
    assert star.hop(1, 1) == Hop((0, 2, 3), None, None, (0, 2, 3), 1, 1)
    assert star.hop(1, 3) == Hop((), 1, 1, (), 2, 0)
    assert neighbours(star, 2) == ({0, 1, 3}, {0, 1, 3})
    sent = [
        sum((hop.gives is not None) + len(hop.passes) for hop in (star.hop(way, place) for way in range(4)))
        for place in range(4)
    ]
    assert sent == [2 * 3] * 4
    assert [Star(size).branch for size in (1, 2, 3)] == [False, False, True]


@pytest.mark.parametrize(("size", "columns"), [(3, 0), (3, 4), (0, 1)])
def test_no_grid_is_our_fault(size: int, columns: int) -> None:
    with pytest.raises(OurFault):
        Grid(size, columns)


class Written:
    """The arithmetic in writing."""

    def part(self, chunk: int, share: float) -> str:
        return f"{share:g}·{chunk}"

    def add(self, chunk: int, share: float, sums: list[str]) -> str:
        return " + ".join([*sums, self.part(chunk, share)])

    def hold(self, chunk: int, mean: str) -> str:
        return mean


def chunk_for(member: SegmentRound[str], rank: int) -> tuple[object, ...]:
    send = member.next_for(rank)
    return () if send is None else (send.kind, send.chunk, send.payload)


def notes_for(member: SegmentRound[str], rank: int) -> tuple[tuple[int, ...], ...]:
    send = member.next_for(rank)
    return () if send is None else (send.held, send.settled)


def test_the_moves_of_one_member_of_three() -> None:
    member = SegmentRound(1, [1, 2, 1], 3, Written(), window=1)
    assert member.next_for(0) is None
    assert chunk_for(member, 2) == (Kind.SUM, 1, "0.5·1")
    member.sum_arrived(0, 0, 0, "a")
    assert chunk_for(member, 2) == (Kind.SUM, 0, "a + 0.5·0")
    member.sum_arrived(0, 0, 2, "b")
    assert chunk_for(member, 2) == (Kind.MEAN, 2, "b + 0.5·2"), "complete here"
    member.mean_arrived(0, 0, 1, "c")
    assert chunk_for(member, 2) == (Kind.MEAN, 1, "c")
    assert member.outcome is None
    member.mean_arrived(0, 0, 0, "d")
    assert member.next_for(2) is None
    assert notes_for(member, 0) == ((0,), ()), "nobody behind it lacks chunk 0"
    member.noted(2, 0, [1, 2], [])
    assert notes_for(member, 0) == ((1,), ())
    assert notes_for(member, 2) == ((), (2,)), "all have what was complete here"
    member.noted(0, 0, [], [0, 1])
    assert member.outcome is Outcome.MEAN
    assert notes_for(member, 2) == ((), (1,))


def test_of_its_own_chunks_only_a_window_is_underway() -> None:
    member = SegmentRound(0, [1, 1], 8, Written(), window=2)
    sent = [member.next_for(1) for _ in range(3)]
    assert [None if send is None else send.chunk for send in sent] == [0, 2, None]
    member.mean_arrived(1, 0, 0, "a")
    assert member.next_for(1).chunk == 4


def test_where_several_begin_a_sum_each_of_their_links_has_a_window() -> None:
    member = SegmentRound(0, [1, 1, 1], 9, Written(), Star, window=1)
    assert [member.next_for(rank).chunk for rank in (2, 1)] == [2, 1]
    assert [member.next_for(rank) for rank in (1, 2)] == [None, None]
    member.mean_arrived(2, 0, 2, "a")
    assert member.next_for(1) is None
    assert member.next_for(2).chunk == 5


def test_what_has_the_longest_way_goes_first() -> None:
    member = SegmentRound(0, [1, 1, 1], 6, Written(), window=1)
    member.sum_arrived(2, 0, 1, "complete")
    member.sum_arrived(2, 0, 2, "underway")
    assert [member.next_for(1).chunk for _ in range(3)] == [0, 2, 1]


@pytest.mark.parametrize(("weights", "rank"), [([5], 0), ([0], 0), ([0, 0, 0], 2)])
def test_nothing_to_average_finishes_at_once(weights: list[float], rank: int) -> None:
    member = SegmentRound(rank, weights, 4, Written())
    assert member.outcome is (Outcome.MEAN if any(weights) else Outcome.UNCHANGED)
    assert all(member.next_for(other) is None for other in range(len(weights)))
    with pytest.raises(ChunkMismatchError):
        member.sum_arrived(1, 0, 0, "a")


def test_what_is_not_due_is_refused_and_changes_nothing() -> None:
    member = SegmentRound(1, [1, 1, 1], 6, Written())
    refused = [
        lambda: member.sum_arrived(2, 0, 0, "from the member after"),
        lambda: member.sum_arrived(0, 0, 1, "where none is taken"),
        lambda: member.sum_arrived(0, 0, 99, "no chunk"),
        lambda: member.sum_arrived(0, 0, "0", "no chunk"),
        lambda: member.sum_arrived(1, 0, 0, "from itself"),
        lambda: member.sum_arrived(7, 0, 0, "from nobody"),
        lambda: member.sum_arrived(0, 0b100, 0, "in a formation that nobody agreed on"),
        lambda: member.mean_arrived(2, 0, 0, "from the member after"),
        lambda: member.mean_arrived(0, 0, 2, "of what is complete here"),
        lambda: member.noted(2, 0, [1], []),
        lambda: member.noted(0, 0, [], [1]),
        lambda: member.formed(0, Formed(0b0, frozenset(), frozenset())),
        lambda: member.formed(0, Formed(0b1, frozenset(), frozenset())),
        lambda: member.formed(0, Formed(0b10000, frozenset(), frozenset())),
        lambda: member.formed(0, Formed(0b100, frozenset({6}), frozenset())),
        lambda: member.formed(0, Formed(0b100, frozenset(), frozenset({1}))),
    ]
    for refuse in refused:
        with pytest.raises(ChunkMismatchError):
            refuse()
    member.sum_arrived(0, 0, 0, "a")
    for repeated in range(2):
        with pytest.raises(ChunkMismatchError):
            member.sum_arrived(0, 0, 0, f"repeated, {repeated}")
        member.next_for(2)
    assert member.formation == 0


def test_the_rest_of_three_go_on_with_what_one_of_them_holds() -> None:
    member = SegmentRound(0, [1, 2, 1], 3, Written(), window=1)
    assert member.next_for(1).payload == "0.25·0"
    member.sum_arrived(2, 0, 1, "whole")
    member.died(2)
    assert member.next_for(1) is None, "nothing is sent before all have said what they hold"
    assert member.news() == [(1, Formed(0b100, frozenset({1}), frozenset({1})))]
    member.sum_arrived(1, 0b100, 2, "early")
    member.formed(1, Formed(0b100, frozenset(), frozenset()))
    sent = [member.next_for(1) for _ in range(2)]
    assert [(send.kind, send.chunk, send.payload) for send in sent] == [
        (Kind.SUM, 0, f"{1 / 3:g}·0"),
        (Kind.MEAN, 1, "whole + 0.25·1"),
    ]
    member.mean_arrived(1, 0, 0, "of a formation that is over")
    member.mean_arrived(1, 0b100, 0, "a")
    assert member.next_for(1).payload == f"early + {1 / 3:g}·2"


def test_a_formation_does_not_begin_twice() -> None:
    member = SegmentRound(0, [1, 1, 1], 3, Written(), window=1)
    member.died(2)
    member.formed(1, Formed(0b100, frozenset(), frozenset()))
    assert not member.forming
    with pytest.raises(ChunkMismatchError, match="twice"):
        member.formed(1, Formed(0b100, frozenset(), frozenset()))


def test_what_comes_before_a_formation_begins_is_bounded() -> None:
    member = SegmentRound(0, [1, 1, 1], 3, Written(), window=1)
    member.died(2)
    for _ in range(9):
        member.sum_arrived(1, 0b100, 2, "early")
    with pytest.raises(ChunkMismatchError, match="more than a formation"):
        member.sum_arrived(1, 0b100, 2, "early")
    assert member.forming


def test_who_is_taken_for_dead_leaves_its_segment_as_it_was() -> None:
    member = SegmentRound(1, [1, 1, 1], 3, Written())
    member.formed(0, Formed(0b010, frozenset(), frozenset()))
    assert member.outcome is Outcome.CUT_OUT
    assert member.next_for(2) is None
    assert member.news() == []


def test_misuse_is_our_fault() -> None:
    for rank, weights, chunks in ((2, [1, 1], 1), (-1, [1, 1], 1), (0, [-1, 1], 1), (0, [1, 1], -1)):
        with pytest.raises(OurFault):
            SegmentRound(rank, weights, chunks, Written())
