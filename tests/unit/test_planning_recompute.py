"""Stages whose activations do not fit are recomputed, where the job allows it, and no others."""

from __future__ import annotations

from dataclasses import replace

from ravnest_p2p.core.planning.cost import (
    draft_cluster,
    draft_with_ranges,
    memory_of,
    planning_table,
    stage_need_bytes,
)
from ravnest_p2p.core.types import JobPhase, JobSpec
from tests.unit.planning_cases import JOB, MB, peer, planned, spec, status


def deep(checkpoint: str) -> JobSpec:
    """16 layers with 40 MB of activations and 0.1 MB over each cut."""
    return spec(16, stages=2, clusters=1, activation_mb=40, checkpoint=checkpoint)


def test_only_stages_that_do_not_fit_recompute() -> None:
    job = deep("auto")
    table = planning_table(job)
    ample = draft_cluster(job, table, [peer("a"), peer("b")])
    assert ample is not None
    assert ample.recompute == (False, False)
    assert ample.ranges == ((0, 8), (8, 16))
    plain = memory_of(job, table, 0, 2, 0, 8, 1, recompute=False).needed
    again = memory_of(job, table, 0, 2, 0, 8, 1, recompute=True).needed
    assert again < plain - 600 * MB
    tight = draft_with_ranges(
        job, table, [peer("a", memory_mb=plain // MB - 1), peer("b")], [(0, 8), (8, 16)]
    )
    assert tight.recompute == (True, False)
    assert tight.interval_s > 1.2 * ample.interval_s


def test_cuts_weigh_the_second_forward() -> None:
    """A stage that would just have to recompute its eight layers gets seven of them and keeps all instead."""
    job = deep("auto")
    table = planning_table(job)
    plain = memory_of(job, table, 0, 2, 0, 8, 1, recompute=False).needed
    draft = draft_cluster(job, table, [peer("a", memory_mb=plain // MB - 1), peer("b")])
    assert draft is not None
    assert draft.recompute == (False, False)
    assert draft.ranges == ((0, 7), (7, 16))


def test_a_swarm_that_is_too_small_otherwise_trains_the_job() -> None:
    small = [peer("a", memory_mb=800), peer("b", memory_mb=800)]
    waits = planned(small, {JOB: deep("never")}).jobs[0]
    assert waits.clusters == ()
    assert "memory" in waits.reason
    for checkpoint in ("auto", "always"):
        (cluster,) = planned(small, {JOB: deep(checkpoint)}).jobs[0].clusters
        assert [stage.recompute for stage in cluster.stages] == [True, True]


def test_auto_prefers_what_is_faster() -> None:
    """With four peers there is room to keep activations on more stages, which saves the second forward."""
    small = [peer(name, memory_mb=1000) for name in "abcd"]
    job = spec(16, clusters=1, activation_mb=40, checkpoint="auto", staleness_bound=1)
    (cluster,) = planned(small, {JOB: job}).jobs[0].clusters
    assert len(cluster.stages) == 4
    assert not any(stage.recompute for stage in cluster.stages)


def test_a_job_that_took_more_memory_than_estimated_gets_more() -> None:
    job = spec(16, stages=2, clusters=1, activation_mb=40)
    need = max(stage_need_bytes(job, planning_table(job), s, 2, 8 * s, 8 * s + 8, 1 - s) for s in (0, 1))
    tight = [peer(name, memory_mb=need // MB + 20) for name in "ab"]
    first = planned(tight, {JOB: job})
    assert first.jobs[0].clusters
    assert [stage.hi for stage in first.jobs[0].clusters[0].stages] == [8, 16]
    known = {JOB: replace(status(first.jobs[0], JobPhase.BROKEN)[JOB], memory_scale=1.2)}
    recut = planned(tight, {JOB: job}, statuses=known, previous=first, epoch=2).jobs[0]
    assert [stage.hi for stage in recut.clusters[0].stages] == [6, 16]
    known = {JOB: replace(known[JOB], memory_scale=1.5)}
    waits = planned(tight, {JOB: job}, statuses=known, previous=first, epoch=2).jobs[0]
    assert waits.clusters == ()
    assert "measured: 1.5 times the estimate" in waits.reason
    larger = [*tight, *(peer(name, memory_mb=2600) for name in "cd")]
    moved = planned(larger, {JOB: job}, statuses=known, previous=first, epoch=2).jobs[0]
    assert {"c", "d"} & set(moved.peers)
