"""What was said is said again until it can be read and somebody keeps it, and not a moment longer."""

from __future__ import annotations

import asyncio
from typing import Any

from ravnest_p2p.core.types import Fence, PeerId, Plan
from ravnest_p2p.daemon.notices import Notice, Notices
from ravnest_p2p.network.records import PlanRecord, TicketRecord

EPOCH = 7
TICKET = TicketRecord(EPOCH, "", "00", "ff")


def plan(epoch: int, term: int) -> PlanRecord:
    return PlanRecord(Plan("test", Fence(epoch, term), PeerId("me"), 1, "", ""))


class Directory:
    """Loses the first `losing` writes."""

    def __init__(self, losing: int = 0) -> None:
        self.losing = losing
        self.stored: list[Notice] = []

    async def publish(self, record: Notice, ttl_s: float) -> bool:
        self.stored.append(record)
        self.losing -= 1
        return self.losing < 0


def repeated(
    directory: Directory, said: list[Notice], readings: list[tuple[int, list[Notice]]]
) -> list[Notice]:
    """What is stored after it was said, by the readings that follow."""
    fake: Any = directory
    notices = Notices(fake, 60.0)

    async def run() -> None:
        for notice in said:
            await notices.say(notice)
        directory.stored.clear()
        for epoch, read in readings:
            await notices.repeat(epoch, read)

    asyncio.run(run())
    return directory.stored


def test_what_is_kept_and_read_is_left_alone() -> None:
    first = plan(EPOCH, 0)
    assert repeated(Directory(), [TICKET, first], [(EPOCH, [first, TICKET])]) == []


def test_what_nobody_keeps_is_stored_again_though_it_was_read() -> None:
    """A reading also finds what lies with ourselves alone."""
    readings = [(EPOCH, [TICKET])] * 3
    assert repeated(Directory(losing=2), [TICKET], readings) == [TICKET, TICKET]


def test_what_is_not_to_be_read_is_stored_again() -> None:
    first = plan(EPOCH, 0)
    readings = [(EPOCH, [TICKET]), (EPOCH, [first]), (EPOCH, [TICKET, first])]
    assert repeated(Directory(), [TICKET, first], readings) == [first, TICKET]


def test_a_later_plan_takes_the_place_of_the_one_before() -> None:
    first, second = plan(EPOCH, 0), plan(EPOCH, 2)
    assert repeated(Directory(), [first, second], [(EPOCH, [first])]) == [second]


def test_an_epoch_ends_what_was_said_in_it() -> None:
    said: list[Notice] = [TICKET, plan(EPOCH, 0)]
    assert repeated(Directory(), said, [(EPOCH + 1, []), (EPOCH, [])]) == []


def test_a_reading_of_the_epoch_before_says_nothing() -> None:
    assert repeated(Directory(), [TICKET], [(EPOCH - 1, []), (EPOCH, [])]) == [TICKET]
