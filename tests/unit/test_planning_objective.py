"""The objective agrees with the stand-alone scorer to the last digits, and refuses what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ravnest_p2p.core.errors import PlanError
from ravnest_p2p.core.planning.instance import parse_problem
from ravnest_p2p.core.planning.layout import Cluster, Layout, parse_layout
from ravnest_p2p.core.planning.objective import score
from ravnest_p2p.core.planning.problem import Problem
from ravnest_p2p.testing.planning_problems import instance

SCORES = json.loads((Path(__file__).parent / "planning_scores.json").read_text())
"""What the stand-alone scorer of the formats says of random plans; null for infeasible ones."""

CASES = [(case["instance"], each["plan"], each["score"]) for case in SCORES for each in case["plans"]]


@pytest.mark.parametrize(("instance", "plan", "expected"), CASES, ids=range(len(CASES)))
def test_equals_the_stand_alone_scorer(instance: Any, plan: Any, expected: dict[str, float] | None) -> None:
    problem, layout = parse_problem(instance), parse_layout(plan)
    if expected is None:
        with pytest.raises(PlanError):
            score(problem, layout)
        return
    found = score(problem, layout)
    assert found.objective == pytest.approx(expected["objective"], rel=1e-9)
    assert found.averaging_s == pytest.approx(expected["averaging_s"], rel=1e-9)
    assert found.moved == expected["changed_primaries"]


def test_the_cases_cover_what_counts() -> None:
    feasible = [case for case in CASES if case[2] is not None]
    assert len(feasible) >= 15
    assert any(case[2] is None for case in CASES)
    assert any(case[2]["changed_primaries"] for case in feasible)
    assert any(
        len(plan["clusters"]) > 2 and plan["ring"]["cols"] < len(plan["clusters"]) for _, plan, _ in feasible
    )
    assert any(plan["backups"] for _, plan, _ in feasible)


def roomy() -> Problem:
    """Four peers, any two of which can train the model of six layers."""
    made = instance("gpt350m", 5, 1, layers=6)
    for peer in made["peers"]:
        peer |= {"mem_bytes": 50e9, "flops": 5e12, "up_mbps": 100.0, "down_mbps": 100.0}
    return parse_problem(made)


GOOD = Layout((Cluster((0, 1), (3,)), Cluster((2, 3), (2,))), ((4, 0),), (0, 1), 2)


def test_the_good_one_is_feasible() -> None:
    assert score(roomy(), GOOD).objective > 0.0


@pytest.mark.parametrize(
    ("layout", "why"),
    [
        (replace(GOOD, clusters=(Cluster((0, 1), (3, 4)), GOOD.clusters[1])), "cluster 0"),
        (replace(GOOD, clusters=(Cluster((0, 1), (0,)), GOOD.clusters[1])), "cluster 0"),
        (replace(GOOD, clusters=(Cluster((0, 1), (6,)), GOOD.clusters[1])), "cluster 0"),
        (replace(GOOD, clusters=(Cluster((0, 9), (3,)), GOOD.clusters[1])), "no peer 9"),
        (replace(GOOD, clusters=(Cluster((0, -1), (3,)), GOOD.clusters[1])), "no peer -1"),
        (replace(GOOD, clusters=(Cluster((0, 2), (3,)), GOOD.clusters[1])), "used twice"),
        (replace(GOOD, clusters=()), "0 clusters"),
        (replace(GOOD, standbys=((3, 0),)), "used twice"),
        (replace(GOOD, standbys=((4, 4),)), "standby 4"),
        (replace(GOOD, standbys=((4, 7),)), "standby 4"),
        (replace(GOOD, order=(0, 0)), "rings"),
        (replace(GOOD, columns=0), "rings"),
        (replace(GOOD, columns=3), "rings"),
    ],
)
def test_infeasible_plans_are_refused_with_the_reason(layout: Layout, why: str) -> None:
    with pytest.raises(PlanError, match=why):
        score(roomy(), layout)


@pytest.mark.parametrize(
    ("rule", "value", "why"),
    [
        ("least_stages", 3, "2 stages"),
        ("most_stages", 1, "2 stages"),
        ("least_clusters", 3, "2 clusters"),
        ("most_clusters", 1, "2 clusters"),
        ("slowest_s", 1e-6, "takes"),
    ],
)
def test_each_rule_is_kept(rule: str, value: float, why: str) -> None:
    problem = roomy()
    with pytest.raises(PlanError, match=why):
        score(replace(problem, rules=replace(problem.rules, **{rule: value})), GOOD)


def test_memory_is_counted_for_stages_and_for_standbys() -> None:
    problem = roomy()
    for peer in (0, 4):
        small = [p._replace(memory_bytes=1e6) if n == peer else p for n, p in enumerate(problem.peers)]
        with pytest.raises(PlanError, match=r"needs|fit"):
            score(replace(problem, peers=tuple(small)), GOOD)
