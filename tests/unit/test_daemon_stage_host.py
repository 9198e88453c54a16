"""What one generation leaves behind must not be taken for the fault of the next."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from ravnest_p2p.core.failover import Stop
from ravnest_p2p.core.types import JobId, JobPhase, PeerId
from ravnest_p2p.daemon import stage_host
from ravnest_p2p.daemon.stage_host import StageHost


class Worker:
    """A worker that ends its run when told, or has to be killed."""

    def __init__(self, obeys: bool) -> None:
        self.alive = True
        self._obeys = obeys

    async def stop_run(self) -> bool:
        self.alive = self._obeys
        return self._obeys


def host(told: list[str] | None = None) -> StageHost:
    async def stale(reason: str) -> None:
        if told is not None:
            told.append(reason)

    deps: Any = SimpleNamespace(floor=None, own=PeerId("own"), book=None, stale=stale)
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
