"""What one generation leaves behind must not be taken for the fault of the next."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ravnest_p2p.core.errors import OurFault
from ravnest_p2p.core.failover import Break, RunMonitor, Stop
from ravnest_p2p.core.types import (
    ClusterPlan,
    Generation,
    JobId,
    JobPhase,
    JobPlan,
    PeerId,
    StageAssignment,
)
from ravnest_p2p.daemon import stage_host
from ravnest_p2p.daemon.host_deps import HostDeps
from ravnest_p2p.daemon.messages import Report, RunFailed
from ravnest_p2p.daemon.stage_host import StageHost
from tests.unit.planning_cases import spec


class Worker:
    """A worker that ends its run when told, or has to be killed."""

    def __init__(self, obeys: bool) -> None:
        self.alive = True
        self._obeys = obeys

    async def stop_run(self, round_s: float) -> bool:
        self.alive = self._obeys
        return self._obeys


def host(told: list[str] | None = None) -> StageHost:
    async def stale(reason: str) -> None:
        if told is not None:
            told.append(reason)

    folder = Path(tempfile.mkdtemp())
    deps: Any = SimpleNamespace(
        floor=None, own=PeerId("own"), book=None, stale=stale, jobs_folder=folder / "none yet"
    )
    return StageHost(JobId("a" * 64), deps)


@pytest.mark.parametrize("obeys", [True, False])
def test_a_worker_that_had_to_be_killed_is_forgotten_at_once(obeys: bool) -> None:
    """Else its death, heard a moment later, would break the generation that has begun by then."""
    part = host()
    worker: Any = Worker(obeys)
    part._worker = worker
    asyncio.run(part._halt_worker())
    assert part._worker is (worker if obeys else None)


def test_who_stopped_for_a_plan_that_never_comes_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_host, "TAKEN_OVER_S", 0.01)
    told: list[str] = []
    part = host(told)
    asyncio.run(part._finish(Stop("a member obeys 5.2", PeerId("b"))))
    assert part.phase is JobPhase.BROKEN
    assert told == ["job aaaaaaaa: a member obeys 5.2, but no plan says so here"]


def test_a_run_that_diverged_fails_the_job_rather_than_the_generation_alone() -> None:
    told: list[str] = []
    part = host(told)
    plan = JobPlan(
        part.job, Generation(1, 1, "tag"), (ClusterPlan((StageAssignment(PeerId("own"), 0, 1, 0),), 1),)
    )
    part._monitor = monitor = RunMonitor(own=PeerId("own"), plan=plan, now_s=0.0)

    async def fail() -> None:
        part._outcome = asyncio.get_running_loop().create_future()
        await part._heard(Any, RunFailed(error="DivergedError", message="training diverged: x"))
        assert isinstance(monitor.outcome, Break)
        await part._finish(part._outcome.result())

    asyncio.run(fail())
    assert (part.phase, part.reason) == (JobPhase.FAILED, "training diverged: x")
    assert len(told) == 1
    part._plan = plan
    asyncio.run(part.leave("the plan has no place for it"))
    assert part.phase is JobPhase.FAILED


def test_the_first_that_is_left_out_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    part = host()
    plan = JobPlan(
        part.job, Generation(1, 1, "tag"), (ClusterPlan((StageAssignment(PeerId("own"), 0, 1, 0),), 1),)
    )
    part._monitor = RunMonitor(own=PeerId("own"), plan=plan, now_s=0.0)
    for skipped in (0, 1, 2):
        why = f"stage 0, micro-batch {skipped}: NaN" if skipped else ""
        asyncio.run(part._heard(Any, Report(skipped=skipped, skipped_why=why)))
    assert [record.getMessage() for record in caplog.records] == [
        "job aaaaaaaa: left out as not finite: stage 0, micro-batch 1: NaN"
    ]


def test_a_window_that_stays_too_narrow_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    part = host()
    stages = (StageAssignment(PeerId("own"), 0, 1, 1), StageAssignment(PeerId("b"), 1, 2, 0))
    part._plan = plan = JobPlan(part.job, Generation(1, 1, "tag"), (ClusterPlan(stages, 1),))
    part._spec = replace(spec(), microbatches_per_update=8, staleness_bound=1)
    part._monitor = RunMonitor(own=PeerId("own"), plan=plan, now_s=0.0)
    for needed in (0.0, 2.1, 4.0, 8.0, 0.0, 4.0):
        report = Report(window_needed=needed, staleness_limit=1, window=2)
        asyncio.run(part._heard(Any, report))
    assert [record.getMessage() for record in caplog.records] == [
        "job aaaaaaaa: cluster 0, stage 0 may have 2 micro-batches in flight and needs 4: it idles about "
        "50 % of the time, since staleness_bound=1 allows no more: submit with staleness_bound=3"
    ]


def test_a_peer_that_lends_nothing_starts_no_worker() -> None:
    deps: Any = HostDeps.__new__(HostDeps)
    deps.memory_bytes, deps.floor, deps.jobs_folder = lambda: 0, None, Path(tempfile.mkdtemp()) / "none yet"
    part = StageHost(JobId("a" * 64), deps)
    part.stand_by()
    assert part._warming is None
    with pytest.raises(OurFault, match="lends no memory"):
        asyncio.run(part._ready_worker())
