"""Numbers of rounds on their way through a pipeline, and what is refused of them."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravnest_p2p.core.errors import ChunkMismatchError
from ravnest_p2p.core.pipeline.notes import Note, header_of, note_in
from ravnest_p2p.core.pipeline.round_numbers import MOST, UNIT, Numbers, RoundNumbers, Told, of_segment

any_numbers = st.builds(Numbers, *(st.integers(0, MOST) for _ in Numbers._fields))


@given(st.permutations([of_segment(0.1 * n, 1e3 / n, 0.01 * n, 0.5) for n in range(1, 7)]), st.integers(0, 6))
def test_sums_do_not_depend_on_where_a_cluster_cuts(parts: list[Numbers], cut: int) -> None:
    def summed(its: list[Numbers]) -> Numbers:
        total = Numbers()
        for one in its:
            total = total.plus(one)
        return total

    assert summed(parts[:cut]).plus(summed(parts[cut:])) == summed(sorted(parts))
    assert summed(parts).update_s == pytest.approx(0.5)
    assert summed(parts).round_s == pytest.approx(0.06)


@given(st.floats(), st.floats(), st.floats(), st.floats())
def test_a_segments_numbers_are_in_bounds_whatever_was_measured(
    a: float, b: float, c: float, d: float
) -> None:
    assert all(0 <= one <= MOST for one in of_segment(a, b, c, d))


@given(any_numbers, any_numbers)
def test_sums_stay_in_bounds(one: Numbers, other: Numbers) -> None:
    assert all(0 <= number <= MOST for number in one.plus(other))


def test_a_pipeline_knows_the_whole_when_gradients_came_back() -> None:
    stages = [RoundNumbers(s, 3) for s in range(3)]
    own = [Numbers(10**s, 1, s, 7, 1) for s in range(3)]

    def microbatch() -> None:
        for before, after in pairwise(stages):
            after.before(before.onward())
        for after, before in pairwise(stages[::-1]):
            before.whole(after.back())

    microbatch()
    assert [stage.of(0) for stage in stages] == [None] * 3
    stages[2].own(0, own[2])
    stages[0].own(0, own[0])
    microbatch()
    assert stages[2].of(0) is None, "the stage between has not told its own"
    stages[1].own(0, own[1])
    microbatch()
    assert [stage.of(0) for stage in stages] == [Numbers(111, 3, 2, 21, 3)] * 3
    for stage in stages:
        stage.own(4, Numbers(segments=1))
    microbatch()
    assert [stage.of(4) for stage in stages] == [Numbers(segments=3)] * 3


def test_one_stage_is_the_whole() -> None:
    alone = RoundNumbers(0, 1)
    alone.own(0, of_segment(1.0, 2.0, 0.5, 0.25))
    assert alone.of(0) == Numbers(UNIT, 2 * UNIT, 500_000, 250_000, 1)
    assert alone.onward() is None


def test_what_rides_on_a_frame_is_read_back() -> None:
    note = Note(told=Told(3, Numbers(1, 2, 3, 4, 5)))
    assert note_in(header_of(note), 2) == note
    assert note_in({}, 2).told is None


@pytest.mark.parametrize(
    "told",
    [
        [],
        [1, 2, 3, 4, 5],
        [0, 1, 2, 3, 4, 5, 6],
        [0, -1, 2, 3, 4, 5],
        [0, MOST + 1, 2, 3, 4, 5],
        [0, 1.0, 2, 3, 4, 5],
        [True, 1, 2, 3, 4, 5],
        [math.nan, 1, 2, 3, 4, 5],
        "numbers",
        {"round": 1},
    ],
    ids=str,
)
def test_foreign_numbers_that_are_none_are_refused(told: object) -> None:
    with pytest.raises(ChunkMismatchError, match="tells of a round"):
        note_in({"told": told}, 2)
