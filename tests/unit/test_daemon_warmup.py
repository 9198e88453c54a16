"""The planner's search is compiled ahead, and a plan comes in time without it."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from ravnest_p2p.core.planning.clusters import EVERY_GROUPING_UP_TO_PEERS
from ravnest_p2p.core.types import PeerId, Plan
from ravnest_p2p.daemon import warmup
from ravnest_p2p.daemon.leader import Leader
from ravnest_p2p.daemon.warmup import Warmup
from tests.unit.planning_cases import JOB, peers, planned, spec

ENOUGH = EVERY_GROUPING_UP_TO_PEERS + 1


@pytest.mark.timeout(240)
def test_the_search_is_ready_once_there_are_peers_enough_to_need_it() -> None:
    async def run() -> list[bool]:
        each = Warmup()
        each.expect(EVERY_GROUPING_UP_TO_PEERS)
        needless = each._running is None
        each.expect(ENOUGH)
        each.expect(ENOUGH)
        assert each._running is not None
        await each._running
        await each.close()
        return [needless, each.ready]

    assert asyncio.run(run()) == [True, True]


def test_stopping_ends_the_child() -> None:
    async def run() -> tuple[bool, int]:
        each = Warmup()
        each.expect(ENOUGH)
        await asyncio.sleep(0)
        await each.close()
        return each.ready, len(asyncio.all_tasks())

    assert asyncio.run(run()) == (False, 1)


def test_where_it_does_not_compile_that_is_said(monkeypatch, caplog) -> None:
    monkeypatch.setattr(warmup.sys, "executable", "/bin/false")

    async def run() -> bool:
        each = Warmup()
        each.expect(ENOUGH)
        assert each._running is not None
        await each._running
        return each.ready

    assert not asyncio.run(run())
    assert "does not compile here, plans follow simple rules" in caplog.text


def leader(*, ready: bool, search_s: float = 5.0) -> Leader:
    nothing: Any = SimpleNamespace()
    made = Leader(PeerId("own"), "swarm", nothing, nothing, nothing, nothing, search_s)
    made.warmup.ready = ready
    return made


PLAN = planned(peers(2), {JOB: spec()})


@pytest.mark.parametrize("ready", [False, True])
def test_it_is_used_where_it_is_ready(ready: bool) -> None:
    asked: list[bool] = []

    def plan(search: bool = True) -> Plan:
        asked.append(search)
        return PLAN

    assert asyncio.run(leader(ready=ready)._in_time(plan)) is PLAN
    assert asked == [ready]


def test_a_search_that_takes_too_long_is_not_waited_for() -> None:
    over = threading.Event()
    asked: list[bool] = []

    def plan(search: bool = True) -> Plan:
        asked.append(search)
        if search:
            over.wait(10.0)
        else:
            over.set()
        return PLAN

    assert asyncio.run(leader(ready=True, search_s=0.05)._in_time(plan)) is PLAN
    assert asked == [True, False]
