"""A job as a planning problem: what the search finds on the likeness holds by the exact costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ravnest_p2p.core.planning.clusters import ClusterSearch
from ravnest_p2p.core.planning.cost import planning_table
from ravnest_p2p.core.planning.job_problem import MOST_CELLS, problem_of
from ravnest_p2p.core.planning.memory import PROCESS_OVERHEAD_BYTES
from ravnest_p2p.core.planning.problem import Layers
from tests.unit.planning_cases import JOB, peer, peers, planned, shape, spec


def test_units_and_bounds() -> None:
    job = spec(stages=2, clusters=3)
    table = planning_table(job)
    problem = problem_of(job, table, peers(7, bps=8e6), most_stages=8, clusters=3)
    assert problem.layers.count == len(table.cuts) - 1
    assert problem.peers[0].up_bytes_s == 1e6
    assert problem.peers[0].memory_bytes == pytest.approx((4e9 - PROCESS_OVERHEAD_BYTES) / 1.6)
    rules = problem.rules
    assert (rules.least_stages, rules.most_stages) == (2, 2)
    assert (rules.least_clusters, rules.most_clusters) == (3, 3)
    assert problem_of(spec(), table, peers(7), most_stages=5).rules.most_stages == 5


def test_latency_is_that_of_the_coordinates_to_a_cell() -> None:
    swarm = [peer("a"), peer("b", at_s=(0.1, 0.0)), peer("c", at_s=(0.1, 0.001))]
    job = spec()
    problem = problem_of(job, planning_table(job), swarm, most_stages=3)
    assert problem.way_s(0, 1) == pytest.approx(0.05 + 0.001, abs=0.005)
    assert problem.peers[1].region == problem.peers[2].region != problem.peers[0].region


def test_regions_stay_few_however_many_peers() -> None:
    swarm = [peer(f"p{n}", at_s=(0.003 * n, 0.002 * (n % 37))) for n in range(1500)]
    job = spec()
    problem = problem_of(job, planning_table(job), swarm, most_stages=3)
    assert len(problem.latency_s) <= MOST_CELLS


def test_what_peers_held_is_in_blocks() -> None:
    job = spec(8)
    held = {"p1": (2, 5)}
    problem = problem_of(job, planning_table(job), peers(2), most_stages=2, held=held)  # type: ignore[arg-type]
    assert [p.held for p in problem.peers] == [(0, 0), (2, 5)]
    assert not problem.rules.moves_are_free


def test_many_unequal_peers_are_grouped_better_than_by_simple_rules() -> None:
    swarm = [
        peer(
            f"p{n:02}",
            flops=1e10 * (1 + n % 5) ** 2,
            bps=1e7 * (1 + n % 3) ** 3,
            memory_mb=600 + 300 * (n % 4),
        )
        for n in range(24)
    ]
    job = spec(param_mb=40)
    search = ClusterSearch(job, swarm)
    best, simple = search.best(), search.simple(24, 0)
    assert best is not None
    assert simple is not None
    assert best.rate >= simple.rate
    used = [peer for draft in best.clusters for peer in draft.ids]
    assert len(used) == len(set(used))


@pytest.mark.parametrize(("stages", "clusters"), [(2, 5), (3, 0), (0, 4)])
def test_what_the_job_asks_for_is_kept_among_many(stages: int, clusters: int) -> None:
    job = planned(peers(20), {JOB: spec(stages=stages, clusters=clusters)}).jobs[0]
    found = shape(job)
    assert not stages or {len(cluster) for cluster in found} == {stages}
    assert not clusters or len(found) == clusters


def test_the_same_facts_in_any_order_give_the_same_plan() -> None:
    swarm = [peer(f"p{n:02}", flops=1e10 * (1 + n % 7)) for n in range(16)]
    one = planned(swarm, {JOB: spec(param_mb=40)})
    assert planned(swarm[::-1], {JOB: spec(param_mb=40)}) == one


def test_what_rounds_send_and_keep_is_that_of_the_job_s_averaging() -> None:
    def layers(**how: Any) -> Layers:
        job = replace(spec(), clusters=2, **how)
        return problem_of(job, planning_table(job), peers(4), most_stages=4).layers

    plain, small = layers(), layers(averaging="int8")
    assert small.sync_bytes[-1] / plain.sync_bytes[-1] == pytest.approx(0.25, rel=0.05)
    assert small.state_bytes[-1] - plain.state_bytes[-1] == 2 * plain.sync_bytes[-1]
    assert layers(average_momentum=True).sync_bytes[-1] == 2 * plain.sync_bytes[-1]
