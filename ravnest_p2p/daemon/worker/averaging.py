"""The transport of `core.rings`: chunks of a stage's segments to and from their other holders.

A stage takes part in one round for each of its segments, and all of them run at once. Two holders of a
segment have one link for both directions. What a link takes next is decided when it has room for it; chunks
are added up in the event loop, in some tens of microseconds each. Nothing of a segment is written back before
its round is over, and all who live have said that they hold the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor

from ravnest_p2p.core.errors import CoMemberLostError, ResultsDifferError
from ravnest_p2p.core.rings import AgreedRound, Dispute, Outcome, Segment, SegmentRound, segments, ways
from ravnest_p2p.core.types import JobPlan, PeerId
from ravnest_p2p.core.wording import peers_text
from ravnest_p2p.daemon.worker.ring_frames import packed, unpacked
from ravnest_p2p.daemon.worker.wires import link_limits, lost
from ravnest_p2p.network.link_server import LinkServer
from ravnest_p2p.network.links import Link
from ravnest_p2p.training import averaging
from ravnest_p2p.training.bounds import MeanBound

Compute = Callable[[Callable[[], Any]], Awaitable[Any]]
Round = AgreedRound[averaging.Chunk]

LIMITS = replace(link_limits(averaging.CHUNK_BYTES), resume_s=3.0)
"""A lost link may take half as long as others to come back: a round waits for it, and can go on without."""

RESULT_S = 30.0
"""Who holds all and does not say within this time what it ended with is not waited for any longer."""


@dataclass(slots=True)
class SegmentLinks:
    """One segment of this stage, and the links to its other holders, by rank.

    Attributes:
        flat: what is averaged, as one vector; kept, since new memory costs more than filling it.
        bound: of the means of all rounds.
    """

    segment: Segment
    rank: int
    names: list[str]
    flat: Tensor
    to: dict[int, Link] = field(default_factory=dict)
    bound: MeanBound = field(default_factory=MeanBound)

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
        """Replace every segment by its weighted mean over the clusters; `weights` are those of the clusters.

        Returns:
            Members that were lost meanwhile; where they hold layers the mean is that of the rest.
        Raises:
            ChunkMismatchError, NonFiniteError: a member sent what does not belong here; nothing of that
                segment was changed.
            ResultsDifferError, OutOfBoundsError: members hold different means, or a mean is too far from what
                we brought; nothing of that segment was changed.
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
        its.bound.begin()
        values = averaging.SegmentValues(flat, chunks, its.bound)
        round_ = SegmentRound(its.rank, of_members, chunks, values, shape)
        agreed = AgreedRound(round_, shape(its.size), values.digests.rows)
        traffic = Traffic(its, number, agreed, values, partial(self._peer, its))
        await traffic.run()
        its.bound.commit()
        await compute(lambda: averaging.scatter(flat, self._params, self._buffers, its.names))
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
        values: averaging.SegmentValues,
        peer_of: Callable[[int], PeerId],
    ) -> None:
        self._errors: dict[int, CoMemberLostError] = {}
        self._its = its
        self._number = number
        self._round = round_
        self._values = values
        self._peer_of = peer_of
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
        reading.append(asyncio.create_task(self._hurry()))
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

    async def _hurry(self) -> None:
        await self._held.wait()
        await asyncio.sleep(RESULT_S)
        for other in self._round.awaited:
            said = f"it holds all, and has not said within {RESULT_S:g} s what it ended with"
            self._gone(other, CoMemberLostError(self._peer_of(other), said))

    async def _write(self, other: int) -> None:
        link, changed = self._its.to[other], self._changed[other]
        while other in self._round.live:
            if (message := self._round.next_for(other)) is None:
                if self._over.is_set():
                    return
                changed.clear()
                await changed.wait()
                continue
            try:
                with lost(link):
                    await link.send(*packed(self._number, message, self._values.chunks))
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
