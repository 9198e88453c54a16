"""A plan that is clearly worse than simple rules is found out; an honest one is not, on any swarm."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from ravnest_p2p.core.planning.clusters import ClusterSearch
from ravnest_p2p.core.planning.identity import tagged
from ravnest_p2p.core.planning.yardstick import clearly_worse
from ravnest_p2p.core.types import Capability, JobPlan, Plan
from tests.unit.planning_cases import JOB, OTHER, peer, planned, spec


def swarm(count: int, seed: int) -> list[Capability]:
    random = Random(seed)
    return [
        peer(
            f"p{n:02}",
            flops=1e10 * random.choice((1, 2, 5, 20)),
            bps=1e7 * random.choice((1, 5, 20)),
            memory_mb=random.choice((800, 2000, 8000)),
            at_s=(random.random() / 10, random.random() / 10),
        )
        for n in range(count)
    ]


def known(peers: list[Capability]) -> dict:
    return {c.peer: c for c in peers}


def formed_of(plan: Plan, job: JobPlan) -> Plan:
    return replace(plan, jobs=(tagged(job, plan.fence),))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("asked", [spec(), spec(stages=2, clusters=2), spec(stages=3)], ids=str)
def test_an_honest_plan_passes(seed: int, asked) -> None:
    peers = swarm(6 + seed % 3 * 7, seed)
    plan = planned(peers, {JOB: asked})
    assert clearly_worse(plan, {JOB: asked}, known(peers)) == ""


def slow_and_fast() -> list[Capability]:
    return [peer(f"slow{n}", flops=1e9) for n in range(2)] + [peer(f"fast{n}", flops=4e10) for n in range(2)]


def test_slow_peers_where_fast_ones_are_free_are_clearly_worse() -> None:
    asked, peers = spec(stages=2, clusters=1), slow_and_fast()
    bad = planned(peers[:2], {JOB: asked})
    why = clearly_worse(bad, {JOB: asked}, known(peers))
    assert why.startswith(f"job {JOB[:8]}: ")
    assert "updates/s, where the same peers and those left free make" in why
    assert clearly_worse(planned(peers, {JOB: asked}), {JOB: asked}, known(peers)) == ""


def test_a_cut_that_gives_one_peer_nearly_all_is_clearly_worse() -> None:
    asked, peers = spec(stages=2, clusters=1), slow_and_fast()[2:]
    plan = planned(peers, {JOB: asked})
    cluster = plan.jobs[0].clusters[0]
    first, second = cluster.stages
    crooked = replace(cluster, stages=(replace(first, hi=7), replace(second, lo=7)))
    bad = formed_of(plan, replace(plan.jobs[0], clusters=(crooked,)))
    assert clearly_worse(bad, {JOB: asked}, known(peers))


def test_what_one_does_not_know_one_does_not_judge() -> None:
    asked, peers = spec(stages=2, clusters=1), slow_and_fast()
    bad = planned(peers[:2], {JOB: asked})
    assert clearly_worse(bad, {OTHER: asked}, known(peers)) == ""
    assert clearly_worse(bad, {JOB: asked}, known(peers[1:])) == ""


def test_what_an_earlier_plan_formed_is_not_judged_again() -> None:
    asked, peers = spec(stages=2, clusters=1), slow_and_fast()
    bad = planned(peers[:2], {JOB: asked})
    later = replace(bad, fence=bad.fence._replace(term=3))
    assert clearly_worse(later, {JOB: asked}, known(peers)) == ""


def test_fast_peers_that_other_jobs_have_are_no_yardstick() -> None:
    asked, peers = spec(stages=2, clusters=1), slow_and_fast()
    plan = planned(peers, {JOB: asked, OTHER: asked})
    assert {len(job.peers) for job in plan.jobs} == {2}
    assert clearly_worse(plan, {JOB: asked, OTHER: asked}, known(peers)) == ""


def test_no_more_peers_than_the_plan_took_are_compared_with() -> None:
    """Fairness among users may have bounded them."""
    asked = spec()
    peers = [peer(f"p{n}") for n in range(6)]
    plan = planned(peers[:1], {JOB: asked})
    assert ClusterSearch(asked, peers).best().rate > 1.6 * ClusterSearch(asked, peers[:1]).best().rate
    assert clearly_worse(plan, {JOB: asked}, known(peers)) == ""


def test_what_is_known_of_links_alone_condemns_nothing() -> None:
    """Two peers measured other lines: what is slow by one's measurements may be the best by another's."""
    asked = spec(stages=2, clusters=1)
    peers = [peer(f"p{n}", bps=1e6 if n < 2 else 1e9) for n in range(4)]
    plan = planned(peers[:2], {JOB: asked})
    assert ClusterSearch(asked, peers).best().rate > 1.6 * ClusterSearch(asked, peers[:2]).best().rate
    assert clearly_worse(plan, {JOB: asked}, known(peers)) == ""
