"""The transport of `core.rings`: chunks of a stage's segments to and from their other holders.

A stage takes part in one round for each of its segments, and all of them run at once. Two holders of a
segment have one link for both directions. What a link takes next is decided when it has room for it; chunks
are added up in the event loop, in some tens of microseconds each. Nothing of a segment is written back before
its round is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from ravnest_p2p.core.errors import ChunkMismatchError, CoMemberLostError
from ravnest_p2p.core.rings import (
    Formed,
    Kind,
    Outcome,
    Segment,
    SegmentRound,
    Send,
    deliver,
    neighbours,
    segments,
    ways,
)
from ravnest_p2p.core.types import JobPlan, PeerId
from ravnest_p2p.daemon.worker.wires import link_limits, lost
from ravnest_p2p.network.bundle import MOST_STRANDS
from ravnest_p2p.network.frames import Buffer, Frame
from ravnest_p2p.network.link_server import LinkServer
from ravnest_p2p.network.links import Link
from ravnest_p2p.network.links_state import LinkLimits
from ravnest_p2p.training import averaging

Compute = Callable[[Callable[[], Any]], Awaitable[Any]]
Round = SegmentRound[averaging.Chunk]

FORMED = "formed"
LIMITS = replace(link_limits(averaging.CHUNK_BYTES), resume_s=3.0)
"""A lost link may take half as long as others to come back: a round waits for it, and can go on without."""
NEAR_LIMITS = replace(LIMITS, strands=MOST_STRANDS)
"""Of links that carry chunks while nobody is dead: the others need no more than one connection."""


@dataclass(slots=True)
class SegmentLinks:
    """One segment of this stage, and the links to its other holders, by rank.

    Attributes:
        flat: what is averaged, as one vector; kept, since new memory costs more than filling it.
        early: a member's first frame of the next round, which it began before we did.
    """

    segment: Segment
    rank: int
    names: list[str]
    flat: Tensor
    to: dict[int, Link] = field(default_factory=dict)
    early: dict[int, Frame] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return len(self.segment.members)

    @property
    def others(self) -> list[int]:
        return [rank for rank in range(self.size) if rank != self.rank]

    def channel(self, other: int) -> str:
        low, high = sorted((self.rank, other))
        return f"ring/{self.segment.lo}/{low}/{high}"


class RingExchange:
    """All segments of one stage.

    Args:
        names_of: segment's layers [lo, hi) → names of the parameters and buffers that they hold, in order.
    """

    def __init__(
        self,
        server: LinkServer,
        plan: JobPlan,
        cluster: int,
        stage: int,
        names_of: Callable[[int, int], list[str]],
        params: Mapping[str, Tensor],
        buffers: MutableMapping[str, Tensor],
    ) -> None:
        self._server = server
        self._plan = plan
        self._params = params
        self._buffers = buffers
        self._segments: list[SegmentLinks] = []
        for segment in segments(plan.clusters, plan.ring_order):
            if (cluster, stage) in segment.members:
                names = names_of(segment.lo, segment.hi)
                elements = averaging.elements(params, buffers, names)
                if not elements:
                    continue  # layers that only use parameters of others
                rank = segment.members.index((cluster, stage))
                self._segments.append(SegmentLinks(segment, rank, names, averaging.vector(elements)))

    @property
    def links(self) -> list[Link]:
        return [link for its in self._segments for link in its.to.values()]

    def expect(self) -> None:
        """Let the members before us dial."""
        for its in self._segments:
            limits = self._limits(its)
            for other in its.others:
                if other < its.rank:
                    its.to[other] = self._server.expect(
                        its.channel(other), self._peer(its, other), limits(other)
                    )

    async def dial(self, nonce_of: Callable[[PeerId], Awaitable[str]]) -> None:
        """Dial the members after us."""

        async def dial(its: SegmentLinks, other: int, limits: LinkLimits) -> None:
            peer = self._peer(its, other)
            its.to[other] = await self._server.dial(peer, await nonce_of(peer), its.channel(other), limits)

        limits = [self._limits(its) for its in self._segments]
        after = [
            (its, other, of(other))
            for its, of in zip(self._segments, limits, strict=True)
            for other in its.others
            if other > its.rank
        ]
        await asyncio.gather(*(dial(*one) for one in after))

    async def average(
        self, number: int, weights: Sequence[float], compute: Compute
    ) -> list[CoMemberLostError]:
        """Replace every segment by its weighted mean over the clusters; `weights` are those of the clusters.

        Returns:
            Members that were lost meanwhile; where they hold layers the mean is that of the rest.
        Raises:
            ChunkMismatchError, NonFiniteError: a member sent what does not belong here; nothing of that
                segment was changed.
            CoMemberLostError: the others go on without us.
        """
        found = await asyncio.gather(
            *(self._average(its, number, weights, compute) for its in self._segments)
        )
        return [error for lost_ in found for error in lost_]

    async def _average(
        self, its: SegmentLinks, number: int, weights: Sequence[float], compute: Compute
    ) -> list[CoMemberLostError]:
        of_members = [weights[member.cluster] for member in its.segment.members]
        if its.size == 1 or not any(of_members):
            await compute(lambda: averaging.check_finite(self._params, self._buffers, its.names))
            return []
        flat, shape = its.flat, partial(ways, columns=self._plan.ring_columns)
        # Means of the last round are sent from there.
        await asyncio.gather(*(link.drained() for link in its.to.values()), return_exceptions=True)
        await compute(lambda: averaging.gather(self._params, self._buffers, its.names, flat))
        chunks = averaging.chunk_count(flat.numel(), shape(its.size).count)
        values = averaging.SegmentValues(flat, chunks)
        round_ = SegmentRound(its.rank, of_members, chunks, values, shape)
        traffic = Traffic(its, number, round_, values)
        await traffic.run()
        await compute(lambda: averaging.scatter(flat, self._params, self._buffers, its.names))
        return traffic.lost

    def _limits(self, its: SegmentLinks) -> Callable[[int], LinkLimits]:
        """By the rank of the other end, which comes to the same."""
        before, after = neighbours(ways(its.size, self._plan.ring_columns), its.rank)
        near = before | after
        return lambda other: NEAR_LIMITS if other in near else LIMITS

    def _peer(self, its: SegmentLinks, rank: int) -> PeerId:
        member = its.segment.members[rank]
        return self._plan.clusters[member.cluster].stages[member.stage].peer


class Traffic:
    """One segment's round over its links."""

    def __init__(
        self, its: SegmentLinks, number: int, round_: Round, values: averaging.SegmentValues
    ) -> None:
        self._errors: dict[int, CoMemberLostError] = {}
        self._its = its
        self._number = number
        self._round = round_
        self._values = values
        self._changed = {other: asyncio.Event() for other in its.others}
        self._news: dict[int, Formed] = {}
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Until the mean is here and all that others need of us is on its way.

        Raises:
            ChunkMismatchError, NonFiniteError: as for `RingExchange.average`.
            CoMemberLostError: the others go on without us.
        """
        over = asyncio.create_task(self._over.wait())
        writing = [asyncio.create_task(self._write(other)) for other in self._its.others]
        reading = [asyncio.create_task(self._read(other)) for other in self._its.others]
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
        self._news |= dict(self._round.news())
        if self._round.outcome is not None:
            self._over.set()
        for event in self._changed.values():
            event.set()

    def _gone(self, other: int, error: CoMemberLostError) -> None:
        self._errors[other] = error
        self._round.died(other)
        self._look()

    async def _write(self, other: int) -> None:
        link, changed = self._its.to[other], self._changed[other]
        buffers: list[Buffer]
        while other in self._round.live:
            if (told := self._news.pop(other, None)) is not None:
                header, buffers = _told(self._number, told, self._values.chunks)
            elif (send := self._round.next_for(other)) is not None:
                header = _header(self._number, send)
                buffers = [] if send.payload is None else [averaging.view(send.payload)]
            elif self._over.is_set():
                return
            else:
                changed.clear()
                await changed.wait()
                continue
            try:
                with lost(link):
                    await link.send(header, buffers)
            except CoMemberLostError as error:
                self._gone(other, error)

    async def _read(self, other: int) -> None:
        link = self._its.to[other]
        while other in self._round.live:
            frame = self._its.early.pop(other, None)
            if frame is None:
                try:
                    with lost(link):
                        frame = await link.receive()
                except CoMemberLostError as error:
                    self._gone(other, error)
                    return
            if frame.header.get("r") == self._number + 1:
                self._its.early[other] = frame
                return
            self._arrived(other, frame)
            self._look()

    def _arrived(self, other: int, frame: Frame) -> None:
        if frame.header.get("k") == FORMED:
            self._round.formed(other, _formed(frame, self._number, self._values.chunks))
        else:
            deliver(self._round, other, _sent(frame, self._number, self._values))


def _told(number: int, told: Formed, chunks: int) -> tuple[dict[str, Any], list[Buffer]]:
    header = {"r": number, "f": told.formation, "k": FORMED}
    return header, [np.packbits([[n in its for n in range(chunks)] for its in told[1:]], axis=1).tobytes()]


def _formed(frame: Frame, number: int, chunks: int) -> Formed:
    """What a member says after a death.

    Raises:
        ChunkMismatchError: the frame is none of this round.
    """
    formation = frame.header.get("f")
    row_bytes = -(-chunks // 8)
    if type(formation) is not int or frame.header.get("r") != number or len(frame.payload) != 2 * row_bytes:
        raise ChunkMismatchError(f"a frame of round {frame.header.get('r')!r} came in round {number}")
    bits = np.unpackbits(np.frombuffer(frame.payload, np.uint8).reshape(2, row_bytes), axis=1)
    held, kept = (frozenset(np.flatnonzero(row).tolist()) for row in bits)
    return Formed(formation, held, kept)


def _header(number: int, send: Send[averaging.Chunk]) -> dict[str, Any]:
    header: dict[str, Any] = {"r": number, "f": send.formation}
    if send.kind is not None:
        header |= {"k": send.kind.value, "c": send.chunk}
    if send.held:
        header["h"] = send.held
    if send.settled:
        header["s"] = send.settled
    return header


def _sent(frame: Frame, number: int, values: averaging.SegmentValues) -> Send[averaging.Chunk]:
    """What a member sent.

    Raises:
        ChunkMismatchError: the frame is none of this round.
    """
    header = frame.header
    formation, chunk = header.get("f"), header.get("c")
    held, settled = header.get("h", []), header.get("s", [])
    lists = isinstance(held, list) and isinstance(settled, list)
    whole = lists and all(type(one) is int for one in (*held, *settled))
    if not whole or type(formation) is not int or header.get("r") != number:
        raise ChunkMismatchError(f"a frame of round {header.get('r')!r} came in round {number}")
    if "k" not in header:
        return Send(formation, None, None, None, tuple(held), tuple(settled))
    if type(chunk) is not int or header["k"] not in (Kind.SUM.value, Kind.MEAN.value):
        raise ChunkMismatchError(f"a frame of chunk {chunk!r} that is neither a sum nor a mean")
    payload = values.received(chunk, frame.payload)
    return Send(formation, Kind(header["k"]), chunk, payload, tuple(held), tuple(settled))
