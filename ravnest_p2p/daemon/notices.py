"""What one peer tells the whole swarm in an epoch: its ticket, and its plan when it leads.

Problem: a write to a DHT may reach nobody, and those who kept it may leave; a term is too short to wait for
luck. Solution: what is said stays said. With every reading, whatever nobody keeps or the reading did not
show is stored again, until the epoch is over.
"""

from __future__ import annotations

from collections.abc import Collection

from ravnest_p2p.network.directory import Directory
from ravnest_p2p.network.records import PlanRecord, TicketRecord

Notice = TicketRecord | PlanRecord


class Notices:
    """Stores this peer's ticket and plan, again where needed.

    Args:
        ttl_s: how long they live in the directory.
    """

    def __init__(self, directory: Directory, ttl_s: float) -> None:
        self._directory = directory
        self._ttl_s = ttl_s
        self._said: dict[type[Notice], Notice] = {}
        self._kept: set[type[Notice]] = set()

    async def say(self, notice: Notice) -> None:
        """Store it; it replaces the one of its kind before."""
        kind = type(notice)
        self._said[kind] = notice
        self._kept.discard(kind)
        if await self._directory.publish(notice, self._ttl_s):
            self._kept.add(kind)

    async def repeat(self, epoch: int, read: Collection[Notice]) -> None:
        """Store again what nobody keeps or what was not read; what an earlier epoch said is over.

        Args:
            read: what a reading of the epoch's records found.
        """
        for notice in list(self._said.values()):
            if _epoch_of(notice) < epoch:
                del self._said[type(notice)]
            elif _epoch_of(notice) == epoch and (type(notice) not in self._kept or notice not in read):
                await self.say(notice)


def _epoch_of(notice: Notice) -> int:
    return notice.epoch if isinstance(notice, TicketRecord) else notice.plan.fence.epoch
