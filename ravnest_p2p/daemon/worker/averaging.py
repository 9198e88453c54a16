"""The transport of `core.rings`: chunks of a stage's segments to and from their other holders.

A stage takes part in one round for each of its segments, and all of them run at once. Two holders of a
segment have one link for both directions. What a link takes next is decided when it has room for it; chunks
are added up in the event loop, in some tens of microseconds each. A round works on a copy; what becomes of
the mean is decided when it is over (`daemon.worker.rounds`).
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
    segments,
)
from ravnest_p2p.core.types import JobPlan, PeerId
from ravnest_p2p.daemon.worker.link_share import LinkShare
from ravnest_p2p.daemon.worker.wires import link_limits, lost
from ravnest_p2p.network.frames import Buffer, Frame
from ravnest_p2p.network.link_server import LinkServer
from ravnest_p2p.network.links import Link
from ravnest_p2p.training import averaging
from ravnest_p2p.training.late_mean import Draft, save, settle, take_in
from ravnest_p2p.training.means import AS_THEY_ARE, Averaging, Means, Values, means_of

Compute = Callable[[Callable[[], Any]], Awaitable[Any]]
Round = SegmentRound[averaging.Chunk]

FORMED = "formed"
LIMITS = replace(link_limits(averaging.CHUNK_BYTES), resume_s=3.0)
"""A lost link may take half as long as others to come back: a round waits for it, and can go on without."""


@dataclass(slots=True)
class SegmentLinks:
    """One segment of this stage, and the links to its other holders, by rank.

    Attributes:
        means: what is averaged, and how; kept, since new memory costs more than filling it.
        values: of the round under way.
        early: a member's first frame of the next round, which it began before we did.
    """

    segment: Segment
    rank: int
    means: Means
    values: Values | None = None
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
        how: what the job says of it.
        share: what rounds may take of the line.
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
        how: Averaging = AS_THEY_ARE,
        share: LinkShare | None = None,
    ) -> None:
        self.share = share or LinkShare(0.0)
        self._server = server
        self._plan = plan
        self._params = params
        self._buffers = buffers
        self._segments: list[SegmentLinks] = []
        self._weights: Sequence[float] = ()
        for segment in segments(plan.clusters, plan.ring_order):
            if (cluster, stage) in segment.members:
                names = names_of(segment.lo, segment.hi)
                if not averaging.elements(params, buffers, names):
                    continue  # layers that only use parameters of others
                rank = segment.members.index((cluster, stage))
                size, columns = len(segment.members), plan.ring_columns
                of_member = how._replace(seed=how.seed + cluster)
                means = means_of(of_member, params, buffers, names, size, columns)
                self._segments.append(SegmentLinks(segment, rank, means))

    @property
    def links(self) -> list[Link]:
        return [link for its in self._segments for link in its.to.values()]

    @property
    def sent_bytes(self) -> int:
        """Of all rounds so far."""
        return sum(link.bytes_sent for link in self.links)

    def expect(self) -> None:
        """Let the members before us dial."""
        for its in self._segments:
            for other in its.others:
                if other < its.rank:
                    its.to[other] = self._server.expect(its.channel(other), self._peer(its, other), LIMITS)

    async def dial(self, nonce_of: Callable[[PeerId], Awaitable[str]]) -> None:
        """Dial the members after us."""

        async def dial(its: SegmentLinks, other: int) -> None:
            peer = self._peer(its, other)
            its.to[other] = await self._server.dial(peer, await nonce_of(peer), its.channel(other), LIMITS)

        after = [(its, other) for its in self._segments for other in its.others if other > its.rank]
        await asyncio.gather(*(dial(its, other) for its, other in after))

    async def average(
        self, number: int, weights: Sequence[float], compute: Compute
    ) -> list[CoMemberLostError]:
        """Replace every segment by its weighted mean over the clusters; as the three parts below."""
        await self.gather(weights, self._buffers, compute)
        lost = await self.exchange(number)
        await compute(self.scatter)
        return lost

    async def gather(self, weights: Sequence[float], buffers: Mapping[str, Tensor], work: Compute) -> None:
        """Begin a round: copy what is averaged.

        Args:
            weights: of the clusters.
            buffers: in the place of the stage's, which a forward may change meanwhile.
            work: runs what takes its time.
        Raises:
            JobError: something is not finite.
        """
        self._weights = weights
        # Means of the last round are sent from there.
        await asyncio.gather(*(link.drained() for link in self.links), return_exceptions=True)
        for its in self._segments:
            if self._is_averaged(its):
                its.values = await work(partial(its.means.begin, self._params, buffers))
            else:
                await work(partial(averaging.check_finite, self._params, buffers, its.means.names))

    async def exchange(self, number: int) -> list[CoMemberLostError]:
        """Make the weighted mean over the clusters of what was gathered.

        Returns:
            Members that were lost meanwhile; where they hold layers the mean is that of the rest.
        Raises:
            ChunkMismatchError, NonFiniteError: a member sent what does not belong here.
            CoMemberLostError: the others go on without us.
        """
        found = await asyncio.gather(*(self._exchange(its, number) for its in self._averaged))
        return [error for lost_ in found for error in lost_]

    def scatter(self) -> None:
        """What to go on from takes the place of what the stage has."""
        for its in self._averaged:
            its.means.end()
            averaging.scatter(its.means.weights, self._params, self._buffers, its.means.names)

    def save(self, draft: Draft) -> None:
        """The mean goes into a piece that was drafted after `scatter`."""
        for its in self._averaged:
            save(its.means, self._params, self._buffers, draft)

    async def settle(self, draft: Draft, work: Compute) -> None:
        """The mean goes into the piece that has the snapshot; what is kept is to be taken in later."""
        await asyncio.gather(*(link.drained() for link in self.links), return_exceptions=True)

        def do(its: SegmentLinks) -> None:
            its.means.end()
            settle(its.means, self._params, self._buffers, draft)

        for its in self._averaged:
            await work(partial(do, its))

    def take_in(self) -> None:
        """Add what `settle` kept to what the stage has."""
        for its in self._averaged:
            take_in(its.means, self._params, self._buffers)

    @property
    def _averaged(self) -> list[SegmentLinks]:
        """Segments of the round under way: held by several, and trained by somebody."""
        return [its for its in self._segments if self._is_averaged(its)]

    def _is_averaged(self, its: SegmentLinks) -> bool:
        return its.size > 1 and any(self._of_members(its))

    def _of_members(self, its: SegmentLinks) -> list[float]:
        return [self._weights[member.cluster] for member in its.segment.members]

    async def _exchange(self, its: SegmentLinks, number: int) -> list[CoMemberLostError]:
        values = its.values
        assert values is not None, "gathered before"
        round_ = SegmentRound(its.rank, self._of_members(its), values.chunks, values, its.means.ways)
        traffic = Traffic(its, number, round_, values, self.share)
        await traffic.run()
        return traffic.lost

    def _peer(self, its: SegmentLinks, rank: int) -> PeerId:
        member = its.segment.members[rank]
        return self._plan.clusters[member.cluster].stages[member.stage].peer


class Traffic:
    """One segment's round over its links."""

    def __init__(
        self,
        its: SegmentLinks,
        number: int,
        round_: Round,
        values: Values,
        share: LinkShare,
    ) -> None:
        self._errors: dict[int, CoMemberLostError] = {}
        self._its = its
        self._number = number
        self._round = round_
        self._values = values
        self._share = share
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
            await self._share.wait()
            if (told := self._news.pop(other, None)) is not None:
                header, buffers = _told(self._number, told, self._values.chunks)
            elif (send := self._round.next_for(other)) is not None:
                header = _header(self._number, send)
                buffers = [] if send.payload is None else [averaging.view(send.payload)]
                self._share.spent(sum(len(buffer) for buffer in buffers))
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


def _sent(frame: Frame, number: int, values: Values) -> Send[averaging.Chunk]:
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
