"""One stage by itself: the order of its ops, its numbers, and what it refuses."""

from __future__ import annotations

import pytest

from ravnest_p2p.core.errors import MicrobatchOrderError, OurFault
from ravnest_p2p.core.pipeline.schedule import (
    Average,
    Backward,
    Forward,
    Op,
    Speculate,
    StageSchedule,
    closed_form,
    staleness_for,
    timetable,
)


def drain(schedule: StageSchedule, *, answers: bool = True) -> list[Op]:
    """Run until nothing can start; gradients come back as soon as the window is full, where `answers`."""
    ops: list[Op] = []
    gradient = schedule.completed
    while True:
        op = schedule.next()
        if op is None:
            if not answers or schedule.in_flight == 0:
                return ops
            schedule.gradient_arrived(gradient)
            gradient += 1
            continue
        ops.append(op)
        schedule.finished(op)


def test_timetable_of_a_first_stage() -> None:
    schedule = StageSchedule(
        0, 3, staleness=2, microbatches_per_update=4, microbatches=12, updates_per_round=2
    )
    assert timetable(drain(schedule)) == (
        "0F0 0F1 0F2 0B0 0F3 0B1 ^1 0f4 0B2 0f5 0B3 |0 "
        "1F6 1B4 1F7 1B5 ^2 1f8 1B6 1f9 1B7 |1 A0 "
        "2F10 2B8 2F11 2B9 2B10 2B11 |2 A1"
    )
    assert schedule.done


def test_no_staleness_is_synchronous_training() -> None:
    schedule = StageSchedule(0, 1, 0, 2, 4, updates_per_round=1)
    assert timetable(drain(schedule)) == "0F0 0B0 0F1 0B1 |0 A0 1F2 1B2 1F3 1B3 |1 A1"


def test_staleness_of_a_whole_batch_builds_two_steps_ahead_in_order() -> None:
    schedule = StageSchedule(0, 2, 2, 2, 6, updates_per_round=1)
    assert timetable(drain(schedule)) == (
        "^1 0F0 0F1 0f2 0B0 0f3 0B1 |0 A0 ^2 1f4 1B2 1f5 1B3 |1 A1 2B4 2B5 |2 A2"
    )


def test_a_cluster_without_work_in_the_last_round_still_averages() -> None:
    schedule = StageSchedule(0, 1, 0, 1, 2, updates_per_round=2, rounds=2)
    assert timetable(drain(schedule)) == "0F0 0B0 |0 1F1 1B1 |1 A0 A1"
    idle = StageSchedule(0, 1, 0, 1, 0, updates_per_round=2, rounds=1)
    assert drain(idle) == [Average(0)]
    assert idle.done


def test_nothing_to_do_is_done() -> None:
    assert StageSchedule(0, 1, 0, 4, 0, updates_per_round=2).done


def test_the_window_holds_what_is_not_answered() -> None:
    schedule = StageSchedule(0, 4, 3, 4, 16)
    assert len(drain(schedule, answers=False)) == schedule.in_flight == 4


def test_backward_comes_before_forward() -> None:
    schedule = StageSchedule(0, 2, 3, 4, 8)
    op = schedule.next()
    assert op == Forward(0, 0, False)
    schedule.finished(op)
    schedule.gradient_arrived(0)
    assert schedule.next() == Backward(0, 0)


def test_one_op_at_a_time() -> None:
    schedule = StageSchedule(0, 2, 3, 4, 8)
    assert schedule.next() is not None
    assert schedule.next() is None
    with pytest.raises(OurFault, match="0F0 was running"):
        schedule.finished(Speculate(1, 2))


def test_messages_flow_while_compute_pauses_for_an_averaging() -> None:
    schedule = StageSchedule(1, 2, 0, 1, 4, updates_per_round=1)
    schedule.activation_arrived(0)
    ops = drain(schedule)
    assert timetable(ops) == "0F0 0B0 |0 A0"
    schedule.activation_arrived(1)
    for _ in range(3):
        op = schedule.next()
        assert op is not None
        schedule.finished(op)
    assert schedule.next() == Average(1)
    schedule.activation_arrived(2)
    assert schedule.next() is None
    schedule.finished(Average(1))
    assert schedule.next() == Forward(2, 2, False)


@pytest.mark.parametrize("i", [-1, 1, 8, 1 << 70])
def test_activations_out_of_order_are_refused(i: int) -> None:
    with pytest.raises(MicrobatchOrderError):
        StageSchedule(1, 2, 0, 4, 8).activation_arrived(i)


def test_repeated_activation_is_refused() -> None:
    schedule = StageSchedule(1, 2, 0, 4, 8)
    schedule.activation_arrived(0)
    with pytest.raises(MicrobatchOrderError, match="expects 1"):
        schedule.activation_arrived(0)


def test_activation_past_the_end_is_refused() -> None:
    schedule = StageSchedule(1, 2, 0, 1, 1)
    schedule.activation_arrived(0)
    with pytest.raises(MicrobatchOrderError):
        schedule.activation_arrived(1)


def test_activation_ahead_of_the_senders_window_is_refused() -> None:
    schedule = StageSchedule(1, 3, 1, 4, 8, upstream_staleness=2)
    for i in range(3):
        schedule.activation_arrived(i)
    with pytest.raises(MicrobatchOrderError, match="below 3"):
        schedule.activation_arrived(3)


def test_gradients_of_what_was_not_sent_are_refused() -> None:
    schedule = StageSchedule(0, 2, 1, 4, 8)
    with pytest.raises(MicrobatchOrderError):
        schedule.gradient_arrived(0)
    drain(schedule, answers=False)
    schedule.gradient_arrived(0)
    for i in (0, 2, -1):
        with pytest.raises(MicrobatchOrderError):
            schedule.gradient_arrived(i)


def test_ends_of_the_pipeline_refuse_what_they_make_themselves() -> None:
    with pytest.raises(MicrobatchOrderError, match="first stage"):
        StageSchedule(0, 2, 1, 4, 8).activation_arrived(0)
    with pytest.raises(MicrobatchOrderError, match="last stage"):
        StageSchedule(1, 2, 1, 4, 8).gradient_arrived(0)


@pytest.mark.parametrize(
    "numbers",
    [
        (2, 2, 0, 4, 8),
        (-1, 2, 0, 4, 8),
        (0, 2, 5, 4, 8),
        (0, 2, -1, 4, 8),
        (0, 2, 1, 4, 9),
        (0, 2, 1, 0, 0),
        (0, 2, 1, 4, -4),
        (0, 2, 1, 4, 8, -1),
        (0, 2, 1, 4, 8, 1, 1),
        (0, 2, 1, 4, 8, 0, 1),
    ],
)
def test_numbers_that_make_no_pipeline_are_our_fault(numbers: tuple[int, ...]) -> None:
    with pytest.raises(OurFault):
        StageSchedule(*numbers)


@pytest.mark.parametrize(
    ("stage", "stages", "ratio", "limit", "tau"),
    [
        (3, 4, 9.0, None, 0),
        (0, 4, 0.0, None, 3),
        (0, 4, 1.0, None, 6),
        (1, 4, 0.2, None, 3),
        (0, 11, 0.1, None, 11),
        (0, 4, 1.0, 4, 4),
        (0, 1, 0.0, 0, 0),
    ],
)
def test_staleness_for(stage: int, stages: int, ratio: float, limit: int | None, tau: int) -> None:
    assert staleness_for(stage, stages, ratio, limit) == tau


def test_closed_form() -> None:
    assert [closed_form(i, 2, 4) for i in (0, 3, 4, 5, 6, 9, 10)] == [
        (0, 0),
        (0, 0),
        (0, 1),
        (0, 1),
        (1, 1),
        (1, 2),
        (2, 2),
    ]
