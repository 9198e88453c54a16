"""The transport of `core.rings`: chunks of a stage's segments, around the rings, and back into the weights.

A stage takes part in one ring for each of its segments, and all of them run at once. Each ring has its own
two links: chunks come from the member before and go to the member after. Nothing of a segment is written
back before its ring is finished.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ravnest_p2p.core.errors import ChunkMismatchError
from ravnest_p2p.core.rings import (
    Accumulate,
    Finished,
    Replace,
    RingAction,
    RingRound,
    Segment,
    SendChunk,
    chunk_bounds,
    segments,
)
from ravnest_p2p.core.types import JobPlan, PeerId
from ravnest_p2p.daemon.worker.wires import link_limits, lost
from ravnest_p2p.network.link_server import LinkServer
from ravnest_p2p.network.links import Link
from ravnest_p2p.network.links_state import LinkLimits
from ravnest_p2p.training import averaging

Compute = Callable[[Callable[[], Any]], Awaitable[Any]]


@dataclass(slots=True)
class Ring:
    """One segment of this stage, and the links to the ring's members beside it."""

    segment: Segment
    rank: int
    names: list[str]
    elements: int
    before: Link | None = None
    after: Link | None = None

    @property
    def size(self) -> int:
        return len(self.segment.members)

    @property
    def limits(self) -> LinkLimits:
        largest = max(stop - start for start, stop in chunk_bounds(self.elements, self.size))
        return link_limits(largest * averaging.ELEMENT_BYTES)

    def channel(self, sender: int) -> str:
        return f"ring/{self.segment.lo}/{sender}"


class RingExchange:
    """All rings of one stage.

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
        self._rings: list[Ring] = []
        for segment in segments(plan.clusters):
            if (cluster, stage) in segment.members:
                names = names_of(segment.lo, segment.hi)
                elements = averaging.elements(params, buffers, names)
                if not elements:
                    continue  # layers that only use parameters of others
                self._rings.append(Ring(segment, segment.members.index((cluster, stage)), names, elements))

    @property
    def links(self) -> list[Link]:
        return [link for ring in self._rings for link in (ring.before, ring.after) if link is not None]

    def expect(self) -> None:
        """Let the member before dial us, in every ring."""
        for ring in self._rings:
            if ring.size > 1:
                before = (ring.rank - 1) % ring.size
                ring.before = self._server.expect(ring.channel(before), self._peer(ring, before), ring.limits)

    async def dial(self, nonce_of: Callable[[PeerId], Awaitable[str]]) -> None:
        """Dial the member after us, in every ring."""

        async def dial(ring: Ring) -> None:
            peer = self._peer(ring, (ring.rank + 1) % ring.size)
            channel = ring.channel(ring.rank)
            ring.after = await self._server.dial(peer, await nonce_of(peer), channel, ring.limits)

        await asyncio.gather(*(dial(ring) for ring in self._rings if ring.size > 1))

    async def average(self, number: int, weights: Sequence[float], compute: Compute) -> None:
        """Replace every segment by its weighted mean over the clusters; `weights` are those of the clusters.

        Raises:
            ChunkMismatchError: a member sent what does not belong here; nothing of that segment was changed.
        """
        await asyncio.gather(*(self._average(ring, number, weights, compute) for ring in self._rings))

    async def _average(self, ring: Ring, number: int, weights: Sequence[float], compute: Compute) -> None:
        of_members = [weights[member.cluster] for member in ring.segment.members]
        round_ = RingRound(ring.rank, ring.size, of_members)
        if round_.unchanged:
            await compute(lambda: averaging.check_finite(self._params, self._buffers, ring.names))
            return
        flat: Tensor = await compute(
            lambda: averaging.weighted(
                averaging.gather(self._params, self._buffers, ring.names), round_.scale
            )
        )
        chunks = averaging.cut(flat, ring.size)
        actions: list[RingAction] = round_.start()
        while not round_.finished:
            await self._send(ring, number, actions, chunks)
            assert ring.before is not None, "a ring of several members has a link from the member before"
            with lost(ring.before):
                frame = await ring.before.receive()
            step, index = _place(frame.header, number)
            actions = round_.chunk_received(step, index)
            if isinstance(actions[0], Replace):
                # Ours has been sent, a whole turn of the ring ago, and the link keeps no copy of it.
                assert ring.after is not None, "a ring of several members has a link to the member after"
                with lost(ring.after):
                    await ring.after.drained(ring.size - 1)
            await compute(lambda: _take(actions, chunks, frame.payload))  # noqa: B023 (awaited in the iteration)
        await compute(lambda: averaging.scatter(flat, self._params, self._buffers, ring.names))

    async def _send(self, ring: Ring, number: int, actions: list[RingAction], chunks: list[Tensor]) -> None:
        assert ring.after is not None, "a ring of several members has a link to the member after"
        for action in actions:
            if isinstance(action, SendChunk):
                header = {"r": number, "t": action.step, "c": action.chunk}
                with lost(ring.after):
                    await ring.after.send(header, [averaging.view(chunks[action.chunk])])

    def _peer(self, ring: Ring, rank: int) -> PeerId:
        member = ring.segment.members[rank]
        return self._plan.clusters[member.cluster].stages[member.stage].peer


def _place(header: dict[str, Any], number: int) -> tuple[int, int]:
    place = header.get("r"), header.get("t"), header.get("c")
    if any(type(part) is not int for part in place) or place[0] != number:
        raise ChunkMismatchError(f"a chunk of round {place[0]!r}, step {place[1]!r} came in round {number}")
    return place[1], place[2]  # type: ignore[return-value]


def _take(
    actions: Sequence[RingAction], chunks: list[Tensor], payload: bytes | bytearray | memoryview
) -> None:
    for action in actions:
        match action:
            case Accumulate():
                averaging.accumulate(chunks[action.chunk], payload)
            case Replace():
                averaging.replace(chunks[action.chunk], payload)
            case SendChunk() | Finished():
                pass
