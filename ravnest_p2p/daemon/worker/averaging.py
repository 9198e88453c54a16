"""The transport of `core.rings`: chunks of a stage's segments to and from their other holders.

A stage takes part in one round for each of its segments, and all of them run at once. Two holders of a
segment have one link for both directions. What a link takes next is decided when it has room for it; chunks
are added up in the event loop, in some tens of microseconds each. A round works on a copy, and is over once
all who live have said that they hold the same; what becomes of the mean is decided then
(`daemon.worker.rounds`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor

from ravnest_p2p.core.errors import CoMemberLostError, ResultsDifferError
from ravnest_p2p.core.pipeline.round_numbers import Numbers, of_segment
from ravnest_p2p.core.rings import (
    AgreedRound,
    Dispute,
    Outcome,
    Segment,
    SegmentRound,
    Showed,
    neighbours,
    segments,
)
from ravnest_p2p.core.rings.segments import normalised, shares_before
from ravnest_p2p.core.types import JobPlan, PeerId
from ravnest_p2p.core.wording import peers_text
from ravnest_p2p.daemon.worker.link_share import LinkShare
from ravnest_p2p.daemon.worker.ring_frames import BEGUN, Message, packed, unpacked
from ravnest_p2p.daemon.worker.wires import link_limits, lost
from ravnest_p2p.network.bundle import MOST_STRANDS
from ravnest_p2p.network.link_server import LinkServer
from ravnest_p2p.network.links import Link
from ravnest_p2p.network.links_state import LinkLimits
from ravnest_p2p.training import averaging
from ravnest_p2p.training.late_mean import Draft, save, settle, take_in
from ravnest_p2p.training.means import AS_THEY_ARE, Averaging, Means, Values, means_of

Compute = Callable[[Callable[[], Any]], Awaitable[Any]]
Round = AgreedRound[Any]

LIMITS = replace(link_limits(averaging.CHUNK_BYTES), resume_s=3.0)
"""A lost link may take half as long as others to come back: a round waits for it, and can go on without."""
NEAR_LIMITS = replace(LIMITS, strands=MOST_STRANDS)
"""Of links that carry chunks while nobody is dead: the others need no more than one connection."""

LATE_TIMES, LATE_LEAST_S = 3.0, 60.0
"""Of the time that the own updates since the last round took, and at least: how long others may begin later.
Plans give slow clusters fewer updates, so that all come at about the same time."""

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


class RingExchange:
    """All segments of one stage.

    Args:
        names_of: segment's layers [lo, hi) → names of the parameters and buffers that they hold, in order.
        how: what the job says of it.
        share: what rounds may take of the line.
    Attributes:
        numbers: what the newest round showed of all its segments.
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
        self._how = how
        self.numbers = Numbers()
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
                    peer, limits = self._peer(its, other), self._limits(its, other)
                    its.to[other] = self._server.expect(its.channel(other), peer, limits)

    async def dial(self, nonce_of: Callable[[PeerId], Awaitable[str]]) -> None:
        """Dial the members after us."""

        async def dial(its: SegmentLinks, other: int) -> None:
            peer, limits = self._peer(its, other), self._limits(its, other)
            its.to[other] = await self._server.dial(peer, await nonce_of(peer), its.channel(other), limits)

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
                shares = partial(self._shares_before, its)
                its.values = await work(partial(its.means.begin, self._params, buffers, shares))
            else:
                await work(partial(averaging.check_finite, self._params, buffers, its.means.names))

    async def exchange(
        self, number: int, update_s: float = 0.0, late_s: float = LATE_LEAST_S
    ) -> list[CoMemberLostError]:
        """Make the weighted mean over the clusters of what was gathered.

        Args:
            update_s: that a local update takes here; goes into `numbers`.
            late_s: who has not begun the round so long after we did is not waited for any longer.
        Returns:
            Members that were lost meanwhile; where they hold layers the mean is that of the rest.
        Raises:
            ResultsDifferError, OutOfBoundsError: members hold different means, or a mean is too far from what
                we brought.
            CoMemberLostError: the others go on without us.
        """
        self.numbers = Numbers()
        its_own = Showed(update_s=update_s)
        found = await asyncio.gather(
            *(self._exchange(its, number, its_own, late_s) for its in self._averaged)
        )
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

    def _shares_before(self, its: SegmentLinks) -> Sequence[float]:
        """Of the members of the round under way, as `RobustValues` takes them."""
        assert its.round is not None, "asked for while it goes on"
        return shares_before(its.rank, self._of_members(its), its.round.live)

    def _of_members(self, its: SegmentLinks) -> list[float]:
        return [self._weights[member.cluster] for member in its.segment.members]

    async def _exchange(
        self, its: SegmentLinks, number: int, own: Showed, late_s: float
    ) -> list[CoMemberLostError]:
        values, begun_s = its.values, time.monotonic()
        assert values is not None, "gathered before"

        def showed() -> Showed:
            if not self._how.adaptive:
                return own
            norm, round_s = its.means.norm, time.monotonic() - begun_s
            return own._replace(spread=its.means.bound.spread, norm=norm, round_s=round_s)

        its.round = SegmentRound(its.rank, self._of_members(its), values.chunks, values, its.means.ways)
        agreed = AgreedRound(its.round, its.means.ways(its.size), values.digests.rows, showed)
        traffic = Traffic(its, number, agreed, values, self.share, partial(self._peer, its), late_s)
        await traffic.run()
        self.numbers = self.numbers.plus(_of_all(agreed.showed, self._of_members(its)))
        return traffic.lost

    def _limits(self, its: SegmentLinks, other: int) -> LinkLimits:
        """Of a link between two ranks; both ends come to the same."""
        before, after = neighbours(its.means.ways(its.size), its.rank)
        return NEAR_LIMITS if other in before | after else LIMITS

    def _peer(self, its: SegmentLinks, rank: int) -> PeerId:
        member = its.segment.members[rank]
        return self._plan.clusters[member.cluster].stages[member.stage].peer


def _of_all(showed: Mapping[int, Showed], weights: Sequence[float]) -> Numbers:
    """One segment's numbers, the same at all of its members: by what each told, in the order of ranks."""
    told = sorted(showed.items())
    if not told:
        return Numbers()
    shares = normalised([weights[rank] for rank, _ in told])
    spread = sum(share * its.spread for share, (_, its) in zip(shares, told, strict=True))
    update_s = sum(its.update_s for _, its in told) / len(told)
    return of_segment(spread, told[0][1].norm, min(its.round_s for _, its in told), update_s)


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
