"""A delayed link whose time stands while the side that uses it is stopped."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.pipelines.delay import STOPPED_S, TICK_S, RunClock


def test_time_stands_while_the_process_is_stopped() -> None:
    looks: Iterator[float] = iter([10.0, 10.1, 10.2, 11.6, 11.7])
    clock = RunClock(lambda: next(looks))
    assert [round(clock(), 6) for _ in range(4)] == [10.1, 10.2, 10.2, 10.3]


def test_a_carrier_that_has_nothing_to_carry_looks_often_enough() -> None:
    assert TICK_S < STOPPED_S / 2
