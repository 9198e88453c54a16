"""Any pipeline, on any network: no rule breaks, nothing deadlocks, every batch counts once."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from ravnest_p2p.testing.lossy_link import Faults
from ravnest_p2p.testing.pipeline_sim import Scenario, SimCluster, SimStage, simulate

LAYERS = 6
times_s = st.sampled_from([0.0, 0.3, 1.0, 1.7, 6.0])


@st.composite
def clusters(draw: st.DrawFn, m: int) -> SimCluster:
    inner = draw(st.sets(st.integers(1, LAYERS - 1), max_size=4))
    cuts = [0, *sorted(inner), LAYERS]
    stages = [
        SimStage(lo, hi, draw(st.integers(0, m)), draw(times_s), draw(times_s)) for lo, hi in pairwise(cuts)
    ]
    kappa = draw(st.integers(1, 3))
    return SimCluster(tuple(stages), kappa, draw(times_s), draw(st.integers(0, kappa)))


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    m = draw(st.integers(1, 6))
    return Scenario(
        tuple(draw(st.lists(clusters(m), min_size=1, max_size=3))),
        microbatches_per_update=m,
        total_batches=draw(st.integers(0, 18)),
        update_s=draw(times_s),
        average_s=draw(times_s),
        link_frames=draw(st.integers(1, 8)),
        faults=Faults(
            draw(st.sampled_from([0.0, 0.02, 0.2])), draw(st.sampled_from([0.0, 0.3])), 4.0, draw(times_s)
        ),
        seed=draw(st.integers(0, 1 << 30)),
    )


@settings(max_examples=400, deadline=None)
@given(scenarios())
def test_any_pipeline_keeps_every_rule(scenario: Scenario) -> None:
    report = simulate(scenario)
    for stages, cluster in zip(report.stages, scenario.clusters, strict=True):
        for stage in stages:
            assert len(stage.in_flight_at_average) == scenario.shares.rounds, cluster
