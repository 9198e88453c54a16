"""A measured window finds what the design's formula says, from nothing, and keeps every stage busy."""

from __future__ import annotations

import pytest

from ravnest_p2p.core.pipeline.schedule import Speculate, staleness_for
from ravnest_p2p.core.pipeline.window import ADAPTIVE, MEASURED, paper_bound
from ravnest_p2p.testing.lossy_link import Faults
from ravnest_p2p.testing.pipeline_sim import Report, Scenario, SimCluster, SimStage, simulate

UPDATES = 40


def run(
    stages: int, latency: float, m: int, *, staleness: str = MEASURED, faults: Faults | None = None
) -> Report:
    """The bound is m: nothing but the measurement keeps the window narrow."""
    bounds = [m] * (stages - 1) + [0]
    parts = tuple(SimStage(s, s + 1, bound) for s, bound in enumerate(bounds))
    cluster = SimCluster(parts, updates_per_round=UPDATES, latency_s=latency)
    return simulate(Scenario((cluster,), m, UPDATES, staleness, faults=faults or Faults()))


def crossing(report: Report, stage: int) -> list[int]:
    return [op.crossing for op in report.stages[0][stage].ops if isinstance(op, Speculate)]


def slowest_busy(report: Report) -> float:
    return min(report.utilisation(0, s) for s in range(len(report.stages[0])))


@pytest.mark.parametrize("latency", [0.0, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("stages", [2, 4, 8])
def test_it_is_the_formula_s_where_that_is_whole(stages: int, latency: float) -> None:
    wanted = [staleness_for(s, stages, latency) for s in range(stages)]
    report = run(stages, latency, 2 * wanted[0])
    assert [crossing(report, s)[-1] for s in range(stages - 1)] == wanted[:-1]
    assert slowest_busy(report) >= 0.97


@pytest.mark.parametrize("latency", [0.25, 0.5, 1.5])
@pytest.mark.parametrize("stages", [2, 4, 8])
def test_between_whole_numbers_it_is_wide_enough_for_the_steps(stages: int, latency: float) -> None:
    report = run(stages, latency, 2 * staleness_for(0, stages, 2.0))
    assert slowest_busy(report) >= 0.97
    assert crossing(report, 0)[-1] <= staleness_for(0, stages, float(-(-latency // 1)))


def test_the_paper_s_bound_grows_with_the_updates() -> None:
    found = crossing(run(4, 2.0, 24, staleness=ADAPTIVE), 0)
    assert found[0] == paper_bound(0)
    assert found == sorted(found)
    assert all(tau <= paper_bound(u) for u, tau in enumerate(found, 1))


def test_breaks_widen_it_and_are_forgotten() -> None:
    faults = Faults(break_probability=0.001, repeat_probability=0.01, reconnect_s=6.0)
    report = run(4, 1.0, 24, faults=faults)
    assert report.breaks > 0
    assert max(crossing(report, 0)) <= 24
    assert slowest_busy(report) >= 0.9
