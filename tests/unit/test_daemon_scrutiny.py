"""What a follower asks itself, and others, before it obeys a sound plan."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from ravnest_p2p.core.errors import RemoteFault
from ravnest_p2p.core.planning.identity import plan_hash
from ravnest_p2p.core.types import Capability, PeerId, Plan
from ravnest_p2p.daemon.peer_messages import Overview, plain
from ravnest_p2p.daemon.scrutiny import ASKED, Scrutiny
from tests.unit.planning_cases import JOB, peer, peers, planned, spec

OWN = PeerId("p0")
ASKED_FOR = spec(stages=2, clusters=1)


class World:
    """A Scrutiny of our own among peers, some of which do not answer."""

    def __init__(self, swarm: list[Capability], silent: str = "") -> None:
        self.asked: list[str] = []
        self._silent = silent.split()
        names = {c.peer for c in swarm}
        view: Any = SimpleNamespace(
            plans={}, capabilities={c.peer: c for c in swarm}, settled=lambda: names, elders=lambda _: names
        )
        entry = SimpleNamespace(spec=ASKED_FOR, over=False)
        book: Any = SimpleNamespace(jobs={JOB: entry})
        hosts: Any = SimpleNamespace(overview=lambda _: Overview())
        self.scrutiny = Scrutiny(OWN, self, view, book, hosts)  # type: ignore[arg-type]

    async def call(self, to: PeerId, name: str, body: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        self.asked.append(to)
        if to in self._silent:
            raise RemoteFault("no answer")
        return plain(Overview())

    def doubt(self, plan: Plan) -> str:
        return asyncio.run(self.scrutiny.doubt(plan, None))


def test_an_honest_plan_is_not_doubted_and_costs_no_question() -> None:
    swarm = peers(12)
    world = World(swarm)
    assert world.doubt(planned(swarm, {JOB: ASKED_FOR})) == ""
    assert world.asked == []


def test_a_plan_that_leaves_out_who_lives_is_doubted() -> None:
    swarm = peers(40)
    world = World(swarm)
    plan = planned(swarm[:20], {JOB: ASKED_FOR})
    assert world.doubt(plan) == f"it leaves out 20 of 40 lending peers, and {ASKED} of {ASKED} of these live"
    assert len(world.asked) == ASKED
    assert world.doubt(plan)
    assert len(world.asked) == ASKED, "it was looked into once"


def test_who_does_not_answer_is_left_out_rightly() -> None:
    swarm = peers(12)
    world = World(swarm, silent="p4 p5 p6 p7 p8 p9")
    assert world.doubt(planned(swarm[:4], {JOB: ASKED_FOR})) == ""
    assert len(world.asked) == 8


def test_a_plan_that_is_clearly_worse_is_doubted_without_a_question() -> None:
    slow = [peer(f"p{n}", flops=1e9) for n in range(2)]
    world = World([*slow, *(peer(f"q{n}", flops=4e10) for n in range(2))])
    assert "updates/s, where the same peers" in world.doubt(planned(slow, {JOB: ASKED_FOR}))
    assert world.asked == []


def test_few_findings_are_remembered(monkeypatch) -> None:
    monkeypatch.setattr("ravnest_p2p.daemon.scrutiny.REMEMBERED", 2)
    swarm = peers(4)
    world = World(swarm)
    plans = [planned(swarm, {JOB: ASKED_FOR}, epoch=epoch) for epoch in (1, 2, 3)]
    for plan in plans:
        assert world.doubt(plan) == ""
    assert list(world.scrutiny._found) == [plan_hash(plan) for plan in plans[1:]]
