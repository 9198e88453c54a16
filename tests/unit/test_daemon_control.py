"""What the control loop makes of tickets whose plan before it has yet to learn of."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ravnest_p2p.core.election import ElectionConfig
from ravnest_p2p.core.planning.identity import plan_hash
from ravnest_p2p.core.types import Fence, Plan
from ravnest_p2p.daemon.control import Control
from ravnest_p2p.daemon.jobbook import JobBook
from ravnest_p2p.network.identity import Identity
from ravnest_p2p.network.records import PlanRecord, Sealed, TicketRecord, make_ticket
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
    session: Any = SimpleNamespace(directory=directory, rpc=None)
    hosts: Any = SimpleNamespace(overview=lambda: None)

    async def leaders() -> list[str | None]:
        control = Control(
            identity=Identity.load_or_create(tmp_path / "own.key", exclusive=False),
            swarm=SWARM,
            config=CONFIG,
            session=session,
            book=JobBook(tmp_path / "state.json"),
            hosts=hosts,
            eligible=False,
            plan=None,
        )
        found = []
        for _ in range(3):
            await control._read_epoch()
            found.append(control.election.leader)
        return found

    assert asyncio.run(leaders()) == [None, None, other.peer_id]
