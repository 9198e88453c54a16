"""The compiled search: its values are the objective's, its cuts the best, its plans good and repeatable."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import combinations, permutations
from typing import Any

import numpy as np
import pytest

from ravnest_p2p.core.errors import PlanError
from ravnest_p2p.core.planning.instance import parse_problem
from ravnest_p2p.core.planning.layout import Cluster
from ravnest_p2p.core.planning.objective import ring_steps_s, score, slowest_transfer, worth
from ravnest_p2p.core.planning.problem import Problem
from ravnest_p2p.core.planning.search.annealing import ALIKE, REGION, most_alike
from ravnest_p2p.core.planning.search.cutter import Cutter
from ravnest_p2p.core.planning.search.effort import effort_for
from ravnest_p2p.core.planning.search.exact import Exact
from ravnest_p2p.core.planning.search.finish import finished
from ravnest_p2p.core.planning.search.intervals import NEVER
from ravnest_p2p.core.planning.search.kernels import ANY, NEAR, cluster_value, most_worth, workspace
from ravnest_p2p.core.planning.search.memetic import Search
from ravnest_p2p.core.planning.search.moves import accept, judge, propose, scratch
from ravnest_p2p.core.planning.search.polish import Orders, polished
from ravnest_p2p.core.planning.search.ring_order import ring_order
from ravnest_p2p.core.planning.search.solve import solve
from ravnest_p2p.core.planning.search.state import ACTIVE, IDLE, State, empty_state
from ravnest_p2p.core.planning.search.tables import LOG_FLOPS, LOG_LINE, tables_of
from ravnest_p2p.testing.planning_problems import instance, with_previous

WIDE = float("inf")


def small(peers: int = 6, seed: int = 1, **settings: Any) -> Problem:
    return parse_problem(instance("gpt350m", peers, seed, layers=8, **settings))


def every_cut(problem: Problem, order: tuple[int, ...]) -> list[Cluster]:
    inner = combinations(range(1, problem.layers.count), len(order) - 1)
    return [Cluster(order, cuts) for cuts in inner]


def value(problem: Problem, cluster: Cluster, transfer_s: float = WIDE) -> float:
    """Of a cluster alone, as the objective has it; 0 where it breaks a rule."""
    try:
        score(replace(problem, rules=replace(problem.rules, least_clusters=1)), finished(problem, [cluster]))
    except PlanError:
        return 0.0
    if slowest_transfer(problem, [cluster])[0] > transfer_s * (1 + 1e-12):
        return 0.0
    return worth(problem, cluster, {}).value


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("transfer_s", [WIDE, 60.0])
def test_cuts_are_the_best_and_worth_what_the_objective_says(seed: int, transfer_s: float) -> None:
    problem = small(seed=seed)
    cutter = Cutter(tables_of(problem))
    for order in [*permutations(range(6), 2), *list(permutations(range(6), 3))[::7], (0,), (3, 1, 4, 5)]:
        found, cluster = cutter.cut(order, transfer_s)
        best = max(value(problem, each, transfer_s) for each in every_cut(problem, order))
        assert found == pytest.approx(best, rel=1e-3)
        if cluster is not None:
            assert found == pytest.approx(value(problem, cluster, transfer_s), rel=1e-6)


def held_problem() -> Problem:
    """Four peers of which two hold stages."""
    made = instance("gpt350m", 4, 1, layers=8)
    plan = {"clusters": [{"peers": [0, 1], "cuts": [5]}]}
    return parse_problem(with_previous(made, plan, 1, 0.0))


def test_cuts_count_what_peers_hold_already() -> None:
    problem = held_problem()
    found, cluster = Cutter(tables_of(problem)).cut((0, 1), WIDE)
    assert cluster is not None
    assert found == pytest.approx(worth(problem, cluster, {}).value, rel=1e-6)


def consistent(state: State, peers: int) -> None:
    """Every peer is idle or in one slot, and every list says so."""
    slots = state.active[: state.counts[ACTIVE]].tolist()
    seen = [int(p) for slot in slots for p in state.members[slot, : state.sizes[slot]]]
    idle = state.idle[: state.counts[IDLE]].tolist()
    assert sorted(seen + idle) == list(range(peers))
    assert sorted(state.active.tolist()) == list(range(len(state.active)))
    for slot in slots:
        assert all(state.slot_of[p] == slot for p in state.members[slot, : state.sizes[slot]])
    assert all(state.slot_of[p] == -1 and state.idle[state.idle_at[p]] == p for p in idle)
    assert state.total[0] == pytest.approx(sum(state.values[slot] for slot in slots), abs=1e-9)


def test_proposals_leave_every_peer_in_one_place() -> None:
    problem = small(12)
    t = tables_of(problem)
    state, p = empty_state(12, 5, 1), scratch(t, 5)
    alike = most_alike(t, np.array([LOG_FLOPS, LOG_LINE]), REGION, min(ALIKE, 11))
    for n in range(3000):
        propose(t, state, p, alike, 300.0)
        before, least_gain = float(state.total[0]), (0.0, -0.1, -NEVER)[n % 3]
        if judge(t, state, p, 300.0, least_gain):
            accept(state, p)
            assert state.total[0] >= before + least_gain - 1e-9
        consistent(state, 12)
    assert state.counts[ACTIVE] > 0


def test_what_is_worth_less_than_needed_is_worth_nothing_and_all_else_the_same() -> None:
    for problem in (small(8, 2), held_problem()):
        t = tables_of(problem)
        work = workspace(t, 5)
        for order in [*permutations(range(4), 3), (3, 1, 2, 0)]:
            peers = np.array(order, np.int64)
            whole = cluster_value(t, peers, peers.size, 300.0, ANY, NEAR, *work)
            assert whole <= most_worth(t, peers, peers.size) * (1 + 1e-9)
            for share in (0.5, 0.99, 1.01, 2.0):
                bounded = cluster_value(t, peers, peers.size, 300.0, share * whole, NEAR, *work)
                assert bounded == (pytest.approx(whole, rel=1e-3) if share < 1 else 0.0)


@pytest.mark.parametrize("seed", range(3))
def test_exact_is_the_best_of_all(seed: int) -> None:
    problem = small(4, seed)
    clusters = [
        each
        for size in range(1, 5)
        for order in permutations(range(4), size)
        for each in every_cut(problem, order)
        if value(problem, each) > 0.0
    ]
    plans = [[each] for each in clusters]
    plans += [[a, b] for a, b in combinations(clusters, 2) if set(a.peers).isdisjoint(b.peers)]
    best = max(score(problem, finished(problem, plan)).objective for plan in plans)
    found = solve(problem)
    assert score(problem, found).objective >= best * (1 - 1e-9)
    alone = finished(problem, [clusters[0]])
    assert score(problem, Exact(problem, alone).run()).objective >= best * (1 - 1e-9)


def test_the_search_alone_is_near_the_optimum() -> None:
    problem = small(8, 2)
    found = score(problem, Search(problem, 1, effort_for(8, "normal")).run()).objective
    assert found >= 0.97 * score(problem, solve(problem)).objective


@pytest.mark.parametrize(("rule", "wanted"), [("stages", 2), ("clusters", 2)])
def test_what_a_job_asks_for_is_kept(rule: str, wanted: int) -> None:
    problem = small(16)
    rules = replace(problem.rules, **{f"least_{rule}": wanted, f"most_{rule}": wanted})
    found = solve(replace(problem, rules=rules), budget="quick")
    if rule == "clusters":
        assert len(found.clusters) == wanted
    else:
        assert {len(cluster.peers) for cluster in found.clusters} == {wanted}


def test_a_plan_to_begin_with_is_not_made_worse() -> None:
    problem = parse_problem(instance("gpt1.3b", 30, 1))
    first = solve(problem)
    again = solve(problem, seed=9, budget="quick", start=first.clusters)
    assert score(problem, again).objective >= 0.995 * score(problem, first).objective


def test_nothing_that_fits_is_said_so() -> None:
    problem = small(3)
    poor = tuple(peer._replace(memory_bytes=1e6) for peer in problem.peers)
    with pytest.raises(PlanError, match="no cluster"):
        solve(replace(problem, peers=poor), budget="quick")


def test_one_peer_is_a_swarm() -> None:
    problem = small(1)
    rich = tuple(peer._replace(memory_bytes=1e12, flops=1e13) for peer in problem.peers)
    found = solve(replace(problem, peers=rich), budget="quick")
    assert [cluster.peers for cluster in found.clusters] == [(0,)]


def test_rings_are_no_longer_than_in_the_order_given() -> None:
    problem = parse_problem(instance("gpt1.3b", 40, 2))
    clusters = [Cluster((n,), ()) for n in range(40)]
    order, columns = ring_order(problem, clusters)
    assert sorted(order) == list(range(40))
    plain = ring_steps_s(problem, clusters, range(40), 40)
    assert ring_steps_s(problem, clusters, order, columns) < 0.7 * plain


_CHILD = """
import json, sys
from ravnest_p2p.core.planning.instance import parse_problem
from ravnest_p2p.core.planning.search.effort import Effort
from ravnest_p2p.core.planning.search.memetic import Search
from ravnest_p2p.testing.planning_problems import instance
effort = Effort(scout=500, some=1000, few=2000, child=200, polish=5)
for *what, seed in json.load(sys.stdin):
    print(json.dumps(Search(parse_problem(instance(*what)), seed, effort).run().to_json()))
"""

PAIRS = [("gpt1.3b", 12 + 2 * (n % 10), n // 4, n) for n in range(100)]
"""Model, peers, its seed and the search's."""


def test_plans_are_the_same_in_every_process() -> None:
    def plans(threads: str, hash_seed: str) -> str:
        environment = {
            **os.environ,
            "PYTHONHASHSEED": hash_seed,
            "OMP_NUM_THREADS": threads,
            "NUMBA_NUM_THREADS": threads,
        }
        command = [sys.executable, "-c", _CHILD]
        done = subprocess.run(
            command, input=json.dumps(PAIRS), capture_output=True, text=True, env=environment, check=True
        )
        return done.stdout

    assert plans("1", "1") == plans("2", "4242")


def test_a_quota_of_standbys_is_kept_at_the_price_of_clusters() -> None:
    made = instance("gpt1.3b", 24, 1)
    made["hyper"]["standby_quota"] = 1.0
    problem = parse_problem(made)
    found = solve(problem, budget="quick")
    primaries = sum(len(cluster.peers) for cluster in found.clusters)
    assert len(found.standbys) >= primaries > 0
    assert 2 * primaries <= 24
    score(problem, found)


def test_where_a_plan_is_there_few_stages_move_for_little_less() -> None:
    cold = instance("gpt1.3b", 60, 1)
    before = solve(parse_problem(cold), budget="quick")
    later = parse_problem(with_previous(cold, before.to_json(), 1, 0.12))
    free = replace(later, rules=replace(later.rules, moves_are_free=True))
    kept = solve(later, budget="quick", start=before.clusters)
    anew = solve(free, budget="quick")
    primaries = sum(len(cluster.peers) for cluster in kept.clusters)
    assert score(later, kept).moved <= 0.5 * primaries
    assert score(later, kept).moved <= 0.7 * score(later, anew).moved
    assert score(free, kept).objective >= 0.9 * score(free, anew).objective


def test_small_changes_keep_every_peer_in_at_most_one_place() -> None:
    tried: list[Orders] = []

    def judge_by_spread(orders: Orders, transfer_s: float) -> float:
        used = [peer for order in orders for peer in order]
        assert len(used) == len(set(used))
        assert set(used) <= set(range(6))
        assert all(orders)
        tried.append(orders)
        return float(len(orders)) - 0.1 * abs(transfer_s - 1.2)

    polished([Cluster((0, 1, 2), (1, 2)), Cluster((3,), ())], 1.0, 6, judge_by_spread, 500)
    assert len(tried) > 50
