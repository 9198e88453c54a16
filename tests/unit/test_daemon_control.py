"""What the control loop makes of tickets whose plan before it has yet to learn of, and of pushed plans."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ravnest_p2p.core.ballot import ElectionConfig
from ravnest_p2p.core.planning.identity import plan_hash
from ravnest_p2p.core.types import Fence, Generation, JobId, JobPlan, PeerId, Plan
from ravnest_p2p.daemon.control import Control
from ravnest_p2p.daemon.jobbook import JobBook
from ravnest_p2p.network.identity import Identity
from ravnest_p2p.network.records import PlanRecord, Sealed, TicketRecord, make_ticket, seal
from ravnest_p2p.network.records_keys import plan_key, tickets_key

SWARM, EPOCH = "test", 7
CONFIG = ElectionConfig(SWARM, epoch_s=60.0)


class Directory:
    """Holds records by key; finds nothing of a key the first `blind` times."""

    def __init__(self, records: dict[str, list[Sealed]], blind: dict[str, int]) -> None:
        self._records = records
        self._blind = blind

    def now_s(self) -> float:
        return EPOCH * CONFIG.epoch_s + 20.0

    async def fetch(self, key: str) -> list[Sealed]:
        left = self._blind.get(key, 0)
        self._blind[key] = left - 1
        return [] if left > 0 else self._records.get(key, [])


def test_a_ticket_counts_as_soon_as_the_plan_that_it_names_is_found(tmp_path: Path) -> None:
    other = Identity.load_or_create(tmp_path / "other.key", exclusive=False)
    before = Plan(SWARM, Fence(EPOCH - 1, 2), other.peer_id, 1, "", "")
    ticket = make_ticket(other, swarm=SWARM, epoch=EPOCH, previous_hash=plan_hash(before))

    def sealed(record: TicketRecord | PlanRecord) -> list[Sealed]:
        return [Sealed(record, other.peer_id, 0.0, 1e9, b"")]

    key = plan_key(SWARM, EPOCH - 1)
    directory: Any = Directory(
        {tickets_key(SWARM, EPOCH): sealed(ticket), key: sealed(PlanRecord(before))}, {key: 2}
    )

    async def leaders() -> list[str | None]:
        control = control_of(tmp_path, directory)
        found = []
        for _ in range(3):
            await control._read_epoch()
            found.append(control.election.leader)
        return found

    assert asyncio.run(leaders()) == [None, None, other.peer_id]


def test_a_pushed_plan_that_is_known_is_not_judged_again(tmp_path: Path) -> None:
    """Everybody hands plans on, so each comes several times."""
    other = Identity.load_or_create(tmp_path / "other.key", exclusive=False)
    directory: Any = Directory({}, {})

    def pushed(term: int) -> bytes:
        record = PlanRecord(Plan(SWARM, Fence(EPOCH, term), other.peer_id, 1, "", ""))
        return seal(other, record, swarm=SWARM, ttl_s=60.0, now_s=directory.now_s())

    async def waiting() -> list[int]:
        control = control_of(tmp_path, directory)
        for term in (0, 0, 1, 0):
            await control.plan_pushed(pushed(term))
        return [plan.fence.term for plan in control._pushed]

    assert asyncio.run(waiting()) == [0, 1]


def test_a_job_that_waits_is_planned_again_with_peers_that_did_not_answer(tmp_path: Path) -> None:
    """A dial that failed once is no reason for a job to wait until the epoch ends."""
    control = control_of(tmp_path, Directory({}, {}))
    silent, job = PeerId("silent"), JobId("a" * 64)
    waits = JobPlan(job, Generation(0, 0, ""), (), reason="needs 2 peers")

    def reason(author: PeerId, *jobs: JobPlan) -> str:
        control._take_up(Plan(SWARM, Fence(EPOCH, 0), author, 1, "", "", jobs))
        control._retries.clear()
        return control._stale_reason()

    control.view.lending = frozenset({(silent, 0)})
    control.view.capabilities = {silent: SimpleNamespace()}  # type: ignore[dict-item]
    control.leader.unheard = frozenset({silent})
    assert "without 1 that did not answer" in reason(control._own, waits)
    assert control._stale_reason(), "until the term has ended"
    assert reason(control._own) == "", "no job waits"
    assert reason(PeerId("other"), waits) == "", "what its author heard is not known here"
    control.view.capabilities = {}
    assert reason(control._own, waits) == "", "it is gone"


def control_of(folder: Path, directory: Any) -> Control:
    """A control loop of our own over a directory that holds nothing else, and nobody to call."""
    session: Any = SimpleNamespace(directory=directory, rpc=None)
    hosts: Any = SimpleNamespace(overview=lambda: None, broken=lambda plan: "")
    return Control(
        identity=Identity.load_or_create(folder / "own.key", exclusive=False),
        swarm=SWARM,
        config=CONFIG,
        session=session,
        book=JobBook(folder / "state.json"),
        hosts=hosts,
        eligible=False,
        plan=None,
    )
