"""One segment's round over its links: what is said, heard, and who is not waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ravnest_p2p.core.errors import CoMemberLostError, ResultsDifferError
from ravnest_p2p.core.rings import AgreedRound, Dispute, Outcome, Segment, SegmentRound
from ravnest_p2p.core.types import PeerId
from ravnest_p2p.core.wording import peers_text
from ravnest_p2p.daemon.worker.link_share import LinkShare
from ravnest_p2p.daemon.worker.ring_frames import BEGUN, Message, packed, unpacked
from ravnest_p2p.daemon.worker.wires import lost
from ravnest_p2p.network.links import Link
from ravnest_p2p.training.means import Means, Values

Round = AgreedRound[Any]

RESULT_S = 30.0
"""Who holds all and does not say within this time what it ended with is not waited for any longer."""


@dataclass(slots=True)
class SegmentLinks:
    """One segment of this stage, and the links to its other holders, by rank.

    Attributes:
        means: what is averaged, and how; kept, since new memory costs more than filling it.
        values, round: of the round under way.
    """

    segment: Segment
    rank: int
    means: Means
    values: Values | None = None
    round: SegmentRound[Any] | None = None
    to: dict[int, Link] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return len(self.segment.members)

    @property
    def others(self) -> list[int]:
        return [rank for rank in range(self.size) if rank != self.rank]

    def channel(self, other: int) -> str:
        low, high = sorted((self.rank, other))
        return f"ring/{self.segment.lo}/{low}/{high}"


class Traffic:
    """One segment's round over its links."""

    def __init__(
        self,
        its: SegmentLinks,
        number: int,
        round_: Round,
        values: Values,
        share: LinkShare,
        peer_of: Callable[[int], PeerId],
        late_s: float,
    ) -> None:
        self._errors: dict[int, CoMemberLostError] = {}
        self._its = its
        self._number = number
        self._round = round_
        self._values = values
        self._share = share
        self._peer_of = peer_of
        self._late_s = late_s
        self._heard: set[int] = set()
        self._changed = {other: asyncio.Event() for other in its.others}
        self._held = asyncio.Event()
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Until the mean is here and all that others need of us is on its way.

        Raises:
            RemoteFault: as for `RingExchange.average`.
            CoMemberLostError: the others go on without us.
        """
        over = asyncio.create_task(self._over.wait())
        writing = [asyncio.create_task(self._write(other)) for other in self._its.others]
        reading = [asyncio.create_task(self._read(other)) for other in self._its.others]
        reading += [asyncio.create_task(self._hurry()), asyncio.create_task(self._begin_without())]
        pending: set[asyncio.Task[Any]] = {over, *writing, *reading}
        try:
            self._look()
            while not all(task.done() for task in (over, *writing)):
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in (over, *writing, *reading):
                task.cancel()
            await asyncio.wait({over, *writing, *reading})
        if self._round.outcome is Outcome.CUT_OUT:
            raise CoMemberLostError(self._its.to[self._its.others[0]].remote, "it went on without us")
        if (dispute := self._round.dispute) is not None:
            raise self._differ(dispute)

    @property
    def lost(self) -> list[CoMemberLostError]:
        """Members without whom the round went on, as we or others noticed."""
        gone = [other for other in self._its.others if other not in self._round.live]
        heard = "another member lost it"
        return [
            self._errors.get(other) or CoMemberLostError(self._its.to[other].remote, heard) for other in gone
        ]

    def _look(self) -> None:
        """Something has changed: there may be something to send, or no more."""
        if self._round.held:
            self._held.set()
        if self._round.outcome is not None:
            self._over.set()
        for event in self._changed.values():
            event.set()

    def _gone(self, other: int, error: CoMemberLostError) -> None:
        self._errors[other] = error
        self._round.died(other)
        self._look()

    async def _begin_without(self) -> None:
        await asyncio.sleep(self._late_s)
        for other in [other for other in self._its.others if other not in self._heard]:
            said = f"it has not begun averaging within {self._late_s:.3g} s of the others"
            self._gone(other, CoMemberLostError(self._peer_of(other), said))

    async def _hurry(self) -> None:
        await self._held.wait()
        await asyncio.sleep(RESULT_S)
        for other in self._round.awaited:
            said = f"it holds all, and has not said within {RESULT_S:g} s what it ended with"
            self._gone(other, CoMemberLostError(self._peer_of(other), said))

    async def _write(self, other: int) -> None:
        changed = self._changed[other]
        await self._send(other, BEGUN)
        while other in self._round.live:
            await self._share.wait()
            if (message := self._round.next_for(other)) is None:
                if self._over.is_set():
                    return
                changed.clear()
                await changed.wait()
                continue
            await self._send(other, message)

    async def _send(self, other: int, message: Message) -> None:
        link = self._its.to[other]
        header, buffers = packed(self._number, message, self._values.chunks)
        self._share.spent(sum(memoryview(buffer).nbytes for buffer in buffers))
        try:
            with lost(link):
                await link.send(header, buffers)
        except CoMemberLostError as error:
            self._gone(other, error)

    async def _read(self, other: int) -> None:
        """Until the member's result, which is the last that it sends in a round."""
        link = self._its.to[other]
        while self._round.awaits(other):
            try:
                with lost(link):
                    frame = await link.receive()
            except CoMemberLostError as error:
                self._gone(other, error)
                return
            self._heard.add(other)
            self._round.arrived(other, unpacked(frame, self._number, self._values))
            self._look()

    def _differ(self, dispute: Dispute) -> ResultsDifferError:
        differ, suspects = (
            [self._peer_of(rank) for rank in ranks] for ranks in (dispute.differ, dispute.suspects)
        )
        layers = f"layers {self._its.segment.lo} to {self._its.segment.hi - 1}"
        blamed = f"{'one of ' if len(suspects) > 1 else ''}{peers_text(suspects)}"
        return ResultsDifferError(
            tuple(suspects),
            f"round {self._number} gave {peers_text(differ)} other means of {layers} than the rest, "
            f"so none is used; at fault is {blamed}",
        )
