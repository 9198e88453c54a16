"""What a window is made of: measured ways, computations, patience, and bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravnest_p2p.core.pipeline.schedule import Backward, Forward, Step
from ravnest_p2p.core.pipeline.window import (
    ADAPTIVE,
    FIXED,
    MEASURED,
    PATIENCE,
    Echo,
    Window,
    covering,
    paper_bound,
)


class Told:
    """A first stage of `after` + 1 equal ones; a forward and a backward take one second each."""

    def __init__(self, after: int = 1, bound: int = 100, mode: str = MEASURED) -> None:
        self.window = Window(after, bound, mode)
        self.now_s, self.i = 0.0, 0

    def microbatch(
        self, way_s: float, *, beyond: float = 0.0, slowest_s: float = 2.0, updates: int = 0
    ) -> int:
        """One micro-batch, of which both ways took `way_s`; returns τ after it."""
        self.window.took(Forward(self.i, 0, False), 1.0)
        self.window.activation_left(self.i, self.now_s)
        self.now_s += way_s + 50.0
        self.window.gradient_arrived(self.i, self.now_s, Echo(50.0, 2.0, slowest_s, beyond))
        self.window.took(Backward(self.i, 0), 1.0)
        self.i += 1
        return self.window.choose(updates)


def test_before_anything_is_measured_the_window_is_that_of_no_latency() -> None:
    assert [Window(after, 100).chosen for after in (0, 1, 3)] == [0, 1, 3]
    assert Window(3, 2).chosen == 2
    assert Window(3, 2).wanted == 3.0


def test_the_time_that_a_stage_held_a_microbatch_is_no_part_of_its_way() -> None:
    assert [Told().microbatch(way_s) for way_s in (0.0, 1.0, 2.0, 4.0, 4.2)] == [1, 2, 2, 3, 4]


def test_the_way_and_the_pace_can_be_told() -> None:
    told = Told()
    assert (told.window.way_s, told.window.pace_s) == (0.0, 0.0)
    told.microbatch(3.0, slowest_s=7.0)
    assert (told.window.way_s, told.window.pace_s) == (3.0, 7.0)


def test_every_link_counts_in_whole_steps() -> None:
    assert Told(after=2).microbatch(1.0, beyond=2.0) == 4
    assert Told(after=2).microbatch(0.1, beyond=1.05) == 3, "two links of a little more than one"


def test_slower_stages_elsewhere_need_fewer_in_flight() -> None:
    assert Told().microbatch(4.0, slowest_s=2.0) == 3
    assert Told().microbatch(4.0, slowest_s=4.0) == 2
    told = Told()
    told.window.activation_arrived(0, 0.0, 4.0)
    assert told.microbatch(4.0) == 2


def test_wider_at_once_narrower_with_patience() -> None:
    told = Told()
    assert told.microbatch(8.0) == 5
    chosen = [told.microbatch(0.0) for _ in range(2 * PATIENCE)]
    assert chosen[: PATIENCE - 1] == [5] * (PATIENCE - 1)
    assert chosen == sorted(chosen, reverse=True)
    assert chosen[-1] == 1


def test_rare_long_ways_count_as_far_as_they_would_idle_the_stage() -> None:
    ways_s = [0.5] * 11 + [4.5]
    told, rarer = Told(), Told()
    assert {told.microbatch(way_s) for way_s in 3 * ways_s} == {2, 4}, "one in twelve two micro-batches later"
    chosen = [rarer.microbatch(way_s) for way_s in [0.5] * 47 + [0.9]]
    assert set(chosen) == {2}, "0.4 s in 48 micro-batches of 2 s are no hundredth"


@given(st.lists(st.floats(0, 1e4), max_size=50), st.floats(0, 10))
def test_what_covers_times_is_the_least_that_they_exceed_by_so_much(times: list[float], by: float) -> None:
    found = covering(times, by)
    mean_excess = sum(max(0.0, time - found) for time in times) / max(1, len(times))
    if found > 0.0:
        assert mean_excess == pytest.approx(by, abs=1e-6)
    else:
        assert mean_excess <= by + 1e-6


def test_behind_a_full_link_what_waits_does_not_widen_the_window() -> None:
    told = Told()
    told.microbatch(4.0)
    told.window.link_took("a", 2.5)
    narrow = told.window.wanted
    for queued_s in (6.0, 8.0, 10.0):
        told.microbatch(queued_s)
    assert told.window.wanted == narrow


def test_fixed_is_the_plan_s_and_the_last_stage_never_runs_ahead() -> None:
    told = Told(bound=7, mode=FIXED)
    assert [told.microbatch(way_s) for way_s in (0.0, 100.0)] == [7, 7]
    assert Told(after=0, bound=0).microbatch(5.0) == 0


def test_adaptive_stays_within_the_paper_s_bound_and_the_plan_s() -> None:
    assert [paper_bound(k) for k in (0, 1, 15, 16, 80, 81, 256, 10_000)] == [1, 2, 2, 3, 3, 4, 5, 11]
    told = Told(after=3, bound=4, mode=ADAPTIVE)
    assert told.window.chosen == 1
    assert [told.microbatch(9.0, updates=k) for k in (0, 1, 16, 256)] == [1, 2, 3, 4]
    assert told.window.wanted > 4
    assert Window(3, 100, ADAPTIVE, 81).chosen == 3


def test_what_goes_on_names_the_slowest_on_its_way() -> None:
    window = Window(1, 10)
    window.activation_arrived(0, 1.0, 7.0)
    assert window.activation_left(0, 3.0) == 7.0
    window.gradient_arrived(0, 9.0, Echo(2.0, 1.0, 8.0, 3.0))
    window.took(Forward(0, 0, False), 1.5)
    window.took(Backward(0, 0), 1.5)
    window.took(Step(0), 100.0)
    echo = window.gradient_left(0, 11.0)
    assert (echo.held_s, echo.compute_s, echo.slowest_s) == (10.0, 3.0, 8.0)
    assert echo.beyond == pytest.approx(3.0 + 1.0, abs=1e-9), (
        "(4 s of way + 1 s of compute) / 8 s, a whole step"
    )


def test_a_stranger_s_zeros_and_giants_leave_a_window_within_its_bounds() -> None:
    for echo in (Echo(0.0, 0.0, 0.0, 0.0), Echo(86_400.0, 86_400.0, 86_400.0, 1048576.0)):
        window = Window(2, 9)
        window.gradient_arrived(0, 0.0, echo)
        assert 2 <= window.choose(0) <= 9
        window.took(Forward(0, 0, False), 0.0)
        window.took(Backward(0, 0), 0.0)
        window.gradient_left(0, 0.0)
        assert 2 <= window.choose(0) <= 9
