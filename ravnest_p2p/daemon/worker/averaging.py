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
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from ravnest_p2p.core.errors import CoMemberLostError
from ravnest_p2p.core.pipeline.round_numbers import Numbers, of_segment
from ravnest_p2p.core.rings import (
    AgreedRound,
    SegmentRound,
    Showed,
    neighbours,
    segments,
)
from ravnest_p2p.core.rings.segments import normalised, shares_before
from ravnest_p2p.core.types import JobPlan, PeerId
from ravnest_p2p.daemon.worker.link_share import LinkShare
from ravnest_p2p.daemon.worker.ring_traffic import SegmentLinks, Traffic
from ravnest_p2p.daemon.worker.wires import link_limits
from ravnest_p2p.network.bundle import MOST_STRANDS
from ravnest_p2p.network.link_server import LinkServer
from ravnest_p2p.network.links import Link
from ravnest_p2p.network.links_state import LinkLimits
from ravnest_p2p.training import averaging
from ravnest_p2p.training.late_mean import Draft, save, settle, take_in
from ravnest_p2p.training.means import AS_THEY_ARE, Averaging, means_of

Compute = Callable[[Callable[[], Any]], Awaitable[Any]]

LIMITS = replace(link_limits(averaging.LARGE_CHUNK_BYTES), resume_s=3.0)
"""A lost link may take half as long as others to come back: a round waits for it, and can go on without."""
NEAR_LIMITS = replace(LIMITS, strands=MOST_STRANDS)
"""Of links that carry chunks while nobody is dead: the others need no more than one connection."""

LATE_TIMES, LATE_LEAST_S = 3.0, 60.0
"""Of the time that the own updates since the last round took, and at least: how long others may begin later.
Plans give slow clusters fewer updates, so that all come at about the same time."""


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
        """Of the members of the round under way, as `RobustMean` takes them."""
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
