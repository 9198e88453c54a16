"""How many updates clusters train beside a round: by what it saves, and what the job allows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ravnest_p2p.core.planning.cost import (
    Draft,
    averaging_s,
    draft_cluster,
    planning_table,
    rounds_of,
    updates_per_s,
)
from ravnest_p2p.core.planning.overlap import ALWAYS, AUTO, LINK_SHARE, MARGIN, NEVER, OVERLAPS, Rounds
from ravnest_p2p.core.types import JobPhase
from tests.unit.planning_cases import JOB, peer, peers, piece, planned, spec, status


def rounds(stopped_s: float, beside_s: float | None = None) -> Rounds:
    """Of two clusters, whose ten updates take 10 s."""
    beside_s = stopped_s / LINK_SHARE if beside_s is None else beside_s
    return Rounds((10, 5), (1.0, 2.0), stopped_s, beside_s)


@pytest.mark.parametrize(
    ("stopped_s", "auto", "always"),
    [
        (0.0, (0, 0), (1, 1)),
        (0.19, (0, 0), (1, 1)),
        (0.21, (1, 1), (1, 1)),
        (1.0, (3, 2), (3, 2)),
        (1.1, (4, 2), (4, 2)),
        (3.0, (9, 5), (9, 5)),
        (9.7, (10, 5), (10, 5)),
        (1e9, (10, 5), (10, 5)),
        (1e300, (0, 0), (10, 5)),
    ],
)
def test_as_many_as_a_round_takes_where_that_saves_time(
    stopped_s: float, auto: tuple[int, ...], always: tuple[int, ...]
) -> None:
    found = {mode: rounds(stopped_s).overlaps(mode) for mode in OVERLAPS}
    assert found == {NEVER: (0, 0), AUTO: auto, ALWAYS: always}


def test_one_cluster_never_waits_for_others() -> None:
    alone = Rounds((10,), (1.0,), 0.0, 0.0)
    assert [alone.overlaps(mode) for mode in OVERLAPS] == [(0,)] * 3


def test_a_period_has_what_no_update_hides() -> None:
    its = rounds(3.0)
    assert its.period_s((0, 0)) == 13.0
    assert its.period_s((6, 3)) == 10.0
    assert its.period_s((6, 2)) == 11.0, "a third of the round is left, which gets the whole line"
    assert its.period_s((1, 1)) == 12.5


def drafts(bps: float = 1e8) -> tuple[Draft, Draft]:
    job = spec(stages=2, clusters=2)
    found = [draft_cluster(job, planning_table(job), peers(4, bps=bps)[n : n + 2]) for n in (0, 2)]
    assert found[0] is not None
    assert found[1] is not None
    return found[0], found[1]


def test_beside_training_the_transfers_take_longer_and_the_ways_do_not() -> None:
    table, pair = planning_table(spec()), drafts()
    whole_s, half_s = averaging_s(spec(), table, pair), averaging_s(spec(), table, pair, 0.5)
    way_s = 0.002
    assert half_s - way_s == pytest.approx(2.0 * (whole_s - way_s))
    assert rounds_of(spec(), table, pair).beside_s == averaging_s(spec(), table, pair, LINK_SHARE)


@pytest.mark.parametrize(
    ("count", "how", "hops"),
    [
        (2, {}, 2),
        (8, {}, 14),
        (16, {}, 12),
        (1000, {}, 124),
        (1000, {"averaging": "int8"}, 2),
        (1000, {"means": "clipped"}, 2),
    ],
)
def test_latency_is_that_of_a_ring_a_grid_or_an_owner(count: int, how: dict[str, str], hops: int) -> None:
    job = replace(spec(), **how)
    one = drafts(1e18)[0]
    assert averaging_s(job, planning_table(job), [one] * count) == pytest.approx(hops * 0.001, rel=1e-3)


def test_the_predicted_speed_counts_what_is_left_to_wait() -> None:
    job, pair = spec(stages=2, clusters=2), drafts()
    table, update_s = planning_table(job), 4 * pair[0].interval_s
    rate = {mode: updates_per_s(replace(job, overlap=mode), table, pair) for mode in OVERLAPS}
    assert rate[NEVER] == pytest.approx(8 / (4 * update_s + averaging_s(spec(), table, pair)))
    assert rate[AUTO] == rate[ALWAYS] == pytest.approx(8 / (4 * update_s))
    slow = drafts(1e7)
    rate = {mode: updates_per_s(replace(job, overlap=mode), table, slow) for mode in OVERLAPS}
    left_s = LINK_SHARE * (averaging_s(spec(), table, slow, LINK_SHARE) - 4 * update_s)
    assert rate[ALWAYS] == pytest.approx(8 / (4 * update_s + left_s))
    assert rate[ALWAYS] == rate[AUTO] > rate[NEVER]


@pytest.mark.parametrize(
    ("bps", "auto", "always"), [(1e7, 4, 4), (1e8, 3, 3), (1e9, 1, 1), (1e10, 0, 1)], ids=str
)
def test_a_plan_says_it_for_every_cluster(bps: float, auto: int, always: int) -> None:
    for mode, count in ((NEVER, 0), (AUTO, auto), (ALWAYS, always)):
        job = planned(peers(4, bps=bps), {JOB: spec(stages=2, clusters=2, overlap=mode)}).jobs[0]
        assert [cluster.overlap for cluster in job.clusters] == [count] * 2


def test_a_faster_cluster_trains_more_updates_beside_a_round() -> None:
    swarm = [peer("f1", flops=1e11), peer("s1"), peer("f2", flops=1e11), peer("s2")]
    fast, slow = planned(swarm, {JOB: spec(stages=2, clusters=2, kappa=20)}).jobs[0].clusters
    assert fast.updates_per_round > fast.overlap > slow.overlap >= 1


def test_who_is_left_alone_trains_beside_nothing() -> None:
    asked = {JOB: spec(stages=2, clusters=2, overlap=ALWAYS)}
    first = planned(peers(4), asked)
    broken = status(first.jobs[0], JobPhase.BROKEN, piece(0, 8, 8, "p0", "p1"))
    (job,) = planned(peers(2), asked, statuses=broken, previous=first, epoch=2).jobs
    assert [cluster.overlap for cluster in job.clusters] == [0]


def test_the_margin_covers_a_round_that_takes_half_as_long_again() -> None:
    its = rounds(1.0)
    late = replace(its, beside_s=MARGIN * its.beside_s)
    assert late.period_s(its.overlaps(AUTO)) == its.busy_s
