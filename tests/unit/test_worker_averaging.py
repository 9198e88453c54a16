"""A stage's rings over links that keep what they were given until it is acknowledged, late."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import msgpack
import pytest
import torch
from torch import Tensor

from ravnest_p2p.core.errors import LinkLostError
from ravnest_p2p.core.types import ClusterPlan, Generation, JobId, JobPlan, PeerId, StageAssignment
from ravnest_p2p.daemon.worker.averaging import RingExchange


class Frame(NamedTuple):
    header: dict[str, Any]
    payload: bytearray


class SlowLink:
    """One end. Nothing is acknowledged before the test says so."""

    def __init__(self, remote: str) -> None:
        self.remote = PeerId(remote)
        self.left = 1 << 30
        self.other: SlowLink
        self._frames: asyncio.Queue[Frame] = asyncio.Queue()
        self._kept: list[tuple[memoryview, bytes]] = []

    async def send(self, header: dict[str, Any], buffers: list[memoryview]) -> None:
        if not self.left:
            raise LinkLostError("gone")
        self.left -= 1
        self._kept += [(buffer, bytes(buffer)) for buffer in buffers]
        header = msgpack.unpackb(msgpack.packb(header))
        await self.other._frames.put(Frame(header, bytearray(b"".join(buffers))))

    async def receive(self) -> Frame:
        if not self.other.left and self._frames.empty():
            raise LinkLostError("gone")
        return await self._frames.get()

    async def drained(self) -> None:
        """All is acknowledged."""
        self.end()
        self._kept.clear()

    def end(self) -> None:
        """What is kept is still what was sent, so that it could have been sent again."""
        for buffer, sent in self._kept:
            assert bytes(buffer) == sent


class Server:
    def __init__(self, links: dict[tuple[str, str], SlowLink], peer: str) -> None:
        self._links, self._peer = links, peer

    def expect(self, channel: str, peer: PeerId, limits: object) -> SlowLink:
        mine, other = SlowLink(peer), SlowLink(self._peer)
        mine.other, other.other = other, mine
        self._links[channel, peer] = other
        return self._links.setdefault((channel, self._peer), mine)

    async def dial(self, peer: PeerId, nonce: str, channel: str, limits: object) -> SlowLink:
        return self._links[channel, self._peer]


async def rings(
    members: int, order: tuple[int, ...] = (), columns: int = 1
) -> tuple[list[RingExchange], list[dict[str, Tensor]], list[SlowLink]]:
    clusters = tuple(ClusterPlan((StageAssignment(PeerId(f"p{c}"), 0, 1, 0),), 1) for c in range(members))
    plan = JobPlan(JobId("job"), Generation(1, 0, "tag"), clusters, ring_order=order, ring_columns=columns)
    links: dict[tuple[str, str], SlowLink] = {}
    params = [{"w": torch.arange(7.0) * (c + 1)} for c in range(members)]
    found: list[RingExchange] = []
    for c in range(members):
        server: Any = Server(links, f"p{c}")
        found.append(RingExchange(server, plan, c, 0, lambda lo, hi: ["w"], params[c], {}))
        found[-1].expect()

    async def nonce_of(peer: PeerId) -> str:
        return "nonce"

    for exchange in found:
        await exchange.dial(nonce_of)
    return found, params, list(links.values())


async def compute(work: Any) -> Any:
    return work()


@pytest.mark.parametrize(
    ("members", "order", "columns"),
    [(2, (), 1), (3, (), 1), (3, (2, 0, 1), 3), (5, (), 1), (5, (3, 1, 4, 0, 2), 2)],
)
def test_no_chunk_changes_while_a_link_may_have_to_send_it_again(
    members: int, order: tuple[int, ...], columns: int
) -> None:
    async def run() -> None:
        exchanges, params, links = await rings(members, order, columns)
        weights = [float(c + 1) for c in range(members)]
        for number in range(2):
            await asyncio.gather(*(e.average(number, weights, compute) for e in exchanges))
        for link in links:
            link.end()
        mean = sum(w * w for w in weights) / sum(weights)
        assert all(torch.equal(its["w"], params[0]["w"]) for its in params)
        torch.testing.assert_close(params[0]["w"], torch.arange(7.0) * mean)

    asyncio.run(run())


@pytest.mark.parametrize("frames", [0, 1, 2, 5, 9])
def test_when_a_member_is_lost_the_rest_end_the_round_and_say_so(frames: int) -> None:
    async def run() -> None:
        exchanges, params, links = await rings(3)
        dead = [link for link in links if link.remote == "p1" or link.other.remote == "p1"]
        for link in dead:
            link.left = frames
        work = [asyncio.create_task(e.average(0, [1, 2, 3], compute)) for e in exchanges]
        found = await asyncio.gather(work[0], work[2])
        work[1].cancel()
        assert [[error.peer for error in its] for its in found] in ([["p1"], ["p1"]], [[], []])
        assert torch.equal(params[0]["w"], params[2]["w"])
        whole, rest = torch.arange(7.0) * 14 / 6, torch.arange(7.0) * 10 / 4
        close = torch.isclose(params[0]["w"], whole) | torch.isclose(params[0]["w"], rest)
        assert close.all(), "each chunk is a mean of those that live, and perhaps the dead"

    asyncio.run(run())
