"""A stage's rings over links that keep what they were given until it is acknowledged, late."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import msgpack
import numpy as np
import pytest
import torch
from torch import Tensor

from ravnest_p2p.core.averaging import AVERAGINGS, PARAMETERS, SPARSE
from ravnest_p2p.core.errors import (
    ChunkMismatchError,
    CoMemberLostError,
    LinkLostError,
    OutOfBoundsError,
    ResultsDifferError,
)
from ravnest_p2p.core.pipeline.round_numbers import UNIT
from ravnest_p2p.core.types import ClusterPlan, Generation, JobId, JobPlan, PeerId, StageAssignment
from ravnest_p2p.daemon.worker import averaging as transport
from ravnest_p2p.daemon.worker import ring_traffic
from ravnest_p2p.daemon.worker.averaging import RingExchange
from ravnest_p2p.training import averaging
from ravnest_p2p.training.bounds import FIRST_ROUNDS, MeanBound
from ravnest_p2p.training.means import AS_THEY_ARE, Averaging


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
    members: int,
    order: tuple[int, ...] = (),
    columns: int = 1,
    elements: int = 7,
    how: Averaging = AS_THEY_ARE,
) -> tuple[list[RingExchange], list[dict[str, Tensor]], list[SlowLink]]:
    clusters = tuple(ClusterPlan((StageAssignment(PeerId(f"p{c}"), 0, 1, 0),), 1) for c in range(members))
    plan = JobPlan(JobId("job"), Generation(1, 0, "tag"), clusters, ring_order=order, ring_columns=columns)
    links: dict[tuple[str, str], SlowLink] = {}
    same = how.kind != PARAMETERS  # differences are from what all begin with
    params = [{"w": torch.arange(float(elements)) * (1 if same else c + 1)} for c in range(members)]
    found: list[RingExchange] = []
    for c in range(members):
        server: Any = Server(links, f"p{c}")
        found.append(RingExchange(server, plan, c, 0, lambda lo, hi: ["w"], params[c], {}, how))
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


@pytest.mark.parametrize("means", ["trimmed", "clipped"])
@pytest.mark.parametrize("kind", [kind for kind in AVERAGINGS if kind != SPARSE])
def test_one_of_many_cannot_move_a_robust_mean_far(means: str, kind: str) -> None:
    async def run() -> None:
        exchanges, params, _ = await rings(5, how=Averaging(kind, means=means))
        for c, its in enumerate(params):
            its["w"] = its["w"].copy_((c + 1) * torch.arange(7.0))
        params[3]["w"].fill_(30000.0)
        await asyncio.gather(*(e.average(0, [1.0] * 5, compute) for e in exchanges))
        assert all(torch.equal(its["w"], params[0]["w"]) for its in params)
        assert (params[0]["w"] <= 5 * torch.arange(7.0) + 8).all()
        assert (params[0]["w"] >= torch.arange(7.0) - 1).all()

    asyncio.run(run())


def test_who_does_not_come_to_the_round_is_not_waited_for() -> None:
    async def run() -> None:
        exchanges, _, _ = await rings(3)
        for exchange in exchanges:
            await exchange.gather([1, 1, 1], {}, compute)
        working = (exchange.exchange(0, late_s=0.2) for exchange in exchanges[:2])
        found = await asyncio.wait_for(asyncio.gather(*working), 10)
        assert [[error.peer for error in its] for its in found] == [["p2"], ["p2"]]
        assert "has not begun averaging within 0.2 s" in str(found[0][0])

    asyncio.run(run())


@pytest.mark.parametrize("kind", AVERAGINGS)
def test_members_know_how_far_apart_they_were(kind: str) -> None:
    """All the same, whatever they send each other; by what each told, weighed as in the mean."""

    async def run() -> None:
        exchanges, params, _ = await rings(3, how=Averaging(kind, adaptive=True))
        shares = (0.5, 0.25, 0.25)
        for number in range(2):
            for c, its in enumerate(params):
                its["w"] += 0.25 * c * torch.arange(7.0)
            before = [its["w"].clone() for its in params]
            await asyncio.gather(*(e.gather([2, 1, 1], {}, compute) for e in exchanges))
            await asyncio.gather(*(e.exchange(number, 0.5 * c) for c, e in enumerate(exchanges)))
            numbers = [e.numbers for e in exchanges]
            assert len(set(numbers)) == 1
            assert numbers[0].segments == 1
            assert numbers[0].update_s == pytest.approx(0.5)
            mean = torch.stack([w * p for w, p in zip(shares, before, strict=True)]).sum(0)
            apart = [float((p - mean).square().sum()) for p in before]
            spread = sum(w * one for w, one in zip(shares, apart, strict=True))
            if kind not in ("int4", "sparse"):
                assert numbers[0].spread / UNIT == pytest.approx(spread, rel=0.05)
            for exchange in exchanges:
                exchange.scatter()

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


def test_a_segment_may_be_smaller_than_its_members_are_many() -> None:
    async def run() -> None:
        exchanges, params, _ = await rings(5, elements=2)
        await asyncio.gather(*(e.average(0, [1.0] * 5, compute) for e in exchanges))
        assert all(torch.equal(its["w"], torch.tensor([0.0, 3.0])) for its in params)

    asyncio.run(run())


class Alters(averaging.SegmentValues):
    """Hands on other means than it holds."""

    def hold(self, chunk: int, mean: averaging.Chunk) -> averaging.Chunk:
        return super().hold(chunk, mean) + np.float32(1)


def one_alters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of those who begin a round."""
    usual = averaging.SegmentValues
    kinds = iter([usual, Alters])

    def make(flat: Tensor, chunks: int, bound: MeanBound) -> averaging.SegmentValues:
        return next(kinds, usual)(flat, chunks, bound)

    monkeypatch.setattr(transport.averaging, "SegmentValues", make)


@pytest.mark.parametrize(("members", "suspects"), [(2, ("p0", "p1")), (4, ("p1", "p2"))])
def test_members_that_end_differently_use_nothing_of_it_and_name_who_it_may_be(
    members: int, suspects: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    one_alters(monkeypatch)

    async def run() -> None:
        exchanges, params, _ = await rings(members)
        work = [e.average(0, [1.0] * members, compute) for e in exchanges]
        found = await asyncio.gather(*work, return_exceptions=True)
        for c, error in enumerate(found):
            assert isinstance(error, ResultsDifferError)
            assert error.peers == suspects
            assert f"one of {', '.join(suspects)}" in str(error)
            assert torch.equal(params[c]["w"], torch.arange(7.0) * (c + 1))

    asyncio.run(run())


def test_who_suddenly_brings_huge_values_ends_the_round_and_nothing_of_it_is_used() -> None:
    async def run() -> None:
        exchanges, params, _ = await rings(3)
        for number in range(FIRST_ROUNDS):
            for c in range(3):
                params[c]["w"] = params[c]["w"] + 0.01 * c
            await asyncio.gather(*(e.average(number, [1.0] * 3, compute) for e in exchanges))
        before = params[0]["w"].clone()
        params[1]["w"][3] = 1e30
        work = [asyncio.create_task(e.average(FIRST_ROUNDS, [1.0] * 3, compute)) for e in exchanges]
        done, pending = await asyncio.wait(work, return_when=asyncio.FIRST_EXCEPTION)
        for task in pending:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        assert any(isinstance(task.exception(), OutOfBoundsError) for task in done)
        assert torch.equal(params[0]["w"], before)
        assert torch.equal(params[2]["w"], before)

    asyncio.run(run())


def test_who_does_not_say_what_it_ended_with_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_traffic, "RESULT_S", 0.05)
    send = SlowLink.send

    async def silent(link: SlowLink, header: dict[str, Any], buffers: list[memoryview]) -> None:
        if not (header.get("k") == "result" and link.other.remote == "p1"):
            await send(link, header, buffers)

    monkeypatch.setattr(SlowLink, "send", silent)

    async def run() -> None:
        exchanges, params, _ = await rings(3)
        found = await asyncio.gather(*(e.average(0, [1.0] * 3, compute) for e in exchanges))
        assert [[error.peer for error in its] for its in found] == [["p1"], [], ["p1"]]
        assert all(isinstance(error, CoMemberLostError) for its in found for error in its)
        assert all(torch.equal(its["w"], params[0]["w"]) for its in params)

    asyncio.run(run())


@pytest.mark.parametrize(
    "header",
    [
        {"r": 0, "k": "result"},
        {"r": 1, "k": "result"},
        {"r": 0, "f": 0, "k": "formed"},
        {"r": 0, "f": "0"},
        {"r": 0, "f": 0, "h": 1},
        {"r": 0, "f": 0, "s": ["1"]},
        {"r": 0, "f": 0, "k": "sum", "c": None},
        {"r": 0, "f": 0, "k": ["sum"], "c": 0},
        {"r": 0, "f": 0, "k": "sum", "c": 0},
        {},
    ],
)
def test_a_frame_that_is_none_of_the_round_ends_it(header: dict[str, Any]) -> None:
    async def run() -> None:
        exchanges, params, links = await rings(2)
        to_p0 = next(link for link in links if link.other.remote == "p1")
        assert to_p0.remote == "p0"
        await to_p0.send(header, [memoryview(b"12345")])
        with pytest.raises(ChunkMismatchError):
            await exchanges[0].average(0, [1, 1], compute)
        assert torch.equal(params[0]["w"], torch.arange(7.0))

    asyncio.run(run())
