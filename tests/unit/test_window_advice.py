"""A window that stays too narrow is noticed, and each cause has its own remedy."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ravnest_p2p.core.pipeline.window import ADAPTIVE, FIXED
from ravnest_p2p.core.pipeline.window_advice import LASTING, Cause, Seen, Shortage, advice, carries, cause_of
from ravnest_p2p.core.types import ClusterPlan, JobSpec, PeerId, StageAssignment
from tests.unit.planning_cases import spec


def cluster(*bounds: int, recompute: bool = False) -> ClusterPlan:
    places = (StageAssignment(PeerId(f"p{s}"), s, s + 1, tau, recompute) for s, tau in enumerate(bounds))
    return ClusterPlan(tuple(places), 1)


def job(m: int = 8, bound: int = 4, **more: object) -> JobSpec:
    return replace(spec(), microbatches_per_update=m, staleness_bound=bound, **more)


def told(*wanted: float, allowed: int = 5) -> list[bool]:
    shortage, found = Shortage(), []
    for value in wanted:
        shortage.told(value, allowed)
        found.append(shortage.lasting)
    return found


def test_only_what_lasts_and_counts_is_a_shortage() -> None:
    assert told(*[9.0] * LASTING) == [False] * (LASTING - 1) + [True]
    assert not any(told(*[5.4] * 3 * LASTING)), "a little"
    assert not any(told(*[9.0, 9.0, 9.0, 5.0] * LASTING)), "it passes"


def test_what_was_wanted_is_told_of_the_updates_in_which_it_was_too_much() -> None:
    shortage = Shortage()
    for wanted in [9.0] * (LASTING - 1):
        shortage.told(wanted, 5)
    assert shortage.wanted == 0.0
    for wanted in (9.0, 5.0, *[7.0] * (LASTING - 2)):
        shortage.told(wanted, 5)
    assert shortage.wanted == pytest.approx((9.0 + 7.0 * (LASTING - 2)) / (LASTING - 1))
    for _ in range(LASTING):
        shortage.told(5.1, 5)
    assert shortage.wanted == 0.0


def test_a_shortage_is_over_when_it_was_for_some_time() -> None:
    found = told(*[9.0] * LASTING, 5.0, 9.0, *[5.0] * LASTING)
    assert found[LASTING - 1 : -1] == [True] * (LASTING + 2)
    assert found[-1] is False


@pytest.mark.parametrize(
    ("spec", "bounds", "allowed", "cause", "words"),
    [
        (
            job(),
            (4, 0),
            5,
            Cause.JOB,
            "staleness_bound=4 allows no more: submit with staleness_bound=7 and microbatches_per_update=14",
        ),
        (job(m=32), (4, 0), 5, Cause.JOB, "submit with staleness_bound=7"),
        (job(m=4), (4, 0), 5, Cause.UPDATE, "never exceeds m = 4: submit with microbatches_per_update=14"),
        (job(m=3, bound=9), (3, 0), 4, Cause.UPDATE, "never exceeds m = 3"),
        (
            job(),
            (2, 0),
            3,
            Cause.MEMORY,
            "its peer's memory allows no more: lend more there (--memory), or submit",
        ),
        (job(staleness=FIXED), (2, 0), 3, Cause.PREDICTED, 'keeps the plan\'s τ = 2: "measured" would'),
        (
            job(staleness=ADAPTIVE),
            (4, 0),
            3,
            Cause.PAPER,
            "τ = 2 after 9 updates, and 4 from update 81 on",
        ),
        (job(staleness=ADAPTIVE), (4, 0), 5, Cause.JOB, "staleness_bound=4 allows"),
    ],
    ids=lambda value: value.name if isinstance(value, Cause) else "",
)
def test_each_cause_has_its_remedy(
    spec: JobSpec, bounds: tuple[int, ...], allowed: int, cause: Cause, words: str
) -> None:
    plan = cluster(*bounds)
    assert cause_of(spec, plan, 0, allowed) is cause
    text = advice(spec, plan, 0, Seen(8.0, allowed, 9))
    assert text.startswith(f"stage 0 may have {allowed} micro-batches in flight and needs 8")
    assert f"idles about {100 * (1 - allowed / 8):.0f} % of the time" in text
    assert words in text
    assert "compression" not in text


def test_memory_may_be_that_of_a_stage_before() -> None:
    assert "the memory of stage 1's peer" in advice(job(), cluster(4, 2, 2, 0), 2, Seen(6.0, 3, 9))
    recomputing = cluster(2, 0, recompute=True)
    assert "more stages" in advice(job(), recomputing, 0, Seen(6.0, 3, 9))


def test_where_frames_take_the_way_they_may_be_smaller_or_fewer() -> None:
    text = advice(job(), cluster(4, 0), 0, Seen(8.0, 5, 9, carried=True))
    assert text.endswith("larger micro-batches help, and compression of large frames")


def test_a_way_is_long_for_what_is_sent_or_for_its_length() -> None:
    assert carries(way_s=0.5, rtt_s=0.1, pace_s=0.2)
    assert not carries(way_s=0.5, rtt_s=0.4, pace_s=0.2), "distance"
    assert not carries(way_s=0.1, rtt_s=0.01, pace_s=0.2), "short"
    assert not carries(way_s=0.5, rtt_s=0.0, pace_s=0.2), "unknown"


def test_whatever_was_measured_the_share_is_one() -> None:
    for wanted in (0.0, 1e-9, 1.0, 1e6):
        assert 0 <= Seen(wanted, 3, 0).busy <= 1
        assert len(advice(job(), cluster(4, 0), 0, Seen(wanted, 3, 10**9))) < 400
