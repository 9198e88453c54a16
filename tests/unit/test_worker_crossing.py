"""Compressed frames between two stages: what arrives, in how many bytes, and what is refused."""

from __future__ import annotations

import asyncio
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ravnest_p2p.core.compression import CODECS, LADDER, encoded_bytes
from ravnest_p2p.core.errors import ChunkMismatchError, RemoteFault
from ravnest_p2p.core.pipeline.window import Echo
from ravnest_p2p.daemon.worker import neighbours
from ravnest_p2p.daemon.worker.neighbours import Neighbours
from ravnest_p2p.model import TensorSpec
from tests.unit.test_worker_neighbours import End, Server, a_link

SHARED = TensorSpec((40, 64), "float32", True)
HIDDEN = TensorSpec((4, 16, 64), "float32", True)
SMALL = TensorSpec((4, 64), "float32", True)
TOKENS = TensorSpec((4, 1024), "int64")
SPECS = (SHARED, HIDDEN, SMALL, TOKENS)
ERRORS = {"none": 0.0, "fp16": 3e-4, "bf16": 2e-3, "int8": 0.01, "int4": 0.12}

ECHO = Echo(0.5, 0.25, 0.25, 1.0)


class Pair:
    """Two stages and the link between them."""

    def __init__(self, before: str, after: str) -> None:
        self.near, self.far = a_link()
        self.before, self.after = a_stage(self.near, 0, before), a_stage(self.far, 1, after)
        self.came: asyncio.Queue[int] = asyncio.Queue()

    async def __aenter__(self) -> Pair:
        await self.before.dial(lambda peer: asyncio.sleep(0, "nonce"))
        self.after.expect()

        def arrived(i: int, _: object) -> None:
            self.came.put_nowait(i)

        self.tasks = [*self.before.start(arrived, arrived), *self.after.start(arrived, arrived)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.before.close()
        await self.after.close()

    async def arrival(self) -> int:
        """The next micro-batch to arrive, or what a stage failed of."""
        waiting = asyncio.ensure_future(self.came.get())
        await asyncio.wait([waiting, *self.tasks], timeout=10, return_when=asyncio.FIRST_COMPLETED)
        for task in self.tasks:
            if task.done():
                waiting.cancel()
                task.result()
        assert waiting.done(), "nothing arrived"
        return waiting.result()

    async def ahead(self, i: int, tensors: list[Tensor]) -> list[Tensor]:
        self.before.take_activation(i)
        self.before.send_activation(i, tensors, 0.5)
        assert await self.arrival() == i
        return self.after.take_activation(i)

    async def back(self, i: int, tensors: list[Tensor | None]) -> list[Tensor | None]:
        self.after.take_gradient(i)
        self.after.send_gradient(i, tensors, ECHO)
        assert await self.arrival() == i
        return self.before.take_gradient(i)


def a_stage(end: End, number: int, compression: str) -> Neighbours:
    program: Any = SimpleNamespace(sends=SPECS, sent_params=(0,), receives=SPECS, received_params=(0,))
    cluster: Any = SimpleNamespace(stages=[SimpleNamespace(peer=f"peer {n}") for n in range(2)])
    return Neighbours(Server(end), cluster, 0, number, program, compression=compression)  # type: ignore[arg-type]


def some_outputs(shared: Tensor) -> list[Tensor]:
    tokens = torch.randint(0, 50_000, TOKENS.shape)
    return [shared, torch.randn(HIDDEN.shape), torch.randn(SMALL.shape), tokens]


def size(codec: str, *, shared: str | None = None, tokens: bool = True) -> int:
    """Bytes of a frame."""
    carried = 0 if shared is None else encoded_bytes(shared, math.prod(SHARED.shape))
    hidden = encoded_bytes(codec, math.prod(HIDDEN.shape))
    return carried + hidden + SMALL.nbytes + (TOKENS.nbytes if tokens else 0)


def off(found: Tensor | None, expected: Tensor) -> float:
    assert found is not None
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("codec", CODECS)
def test_activations_are_encoded_and_weights_and_integers_are_exact(codec: str) -> None:
    async def run() -> None:
        shared = torch.randn(SHARED.shape)
        async with Pair(codec, codec) as pair:
            for i in range(4):
                sent = some_outputs(shared)
                came = await pair.ahead(i, sent)
                assert [torch.equal(came[k], sent[k]) for k in (0, 2, 3)] == [True] * 3
                assert off(came[1], sent[1]) <= ERRORS[codec]
                assert codec == "none" or not torch.equal(came[1], sent[1])
            assert pair.near.sizes == [size(codec, shared="none"), *[size(codec)] * 3]

    asyncio.run(run())


@pytest.mark.parametrize("codec", CODECS)
def test_gradients_are_encoded_and_those_of_a_weight_add_up(codec: str) -> None:
    async def run() -> None:
        sums = torch.zeros(SHARED.shape), torch.zeros(SHARED.shape)
        async with Pair(codec, codec) as pair:
            for i in range(30):
                sent: list[Tensor | None] = [torch.randn(spec.shape) for spec in SPECS[:3]]
                came = await pair.back(i, [*sent, None])
                assert came[3] is None
                assert torch.equal(came[2], sent[2])  # type: ignore[arg-type]
                assert off(came[1], sent[1]) <= ERRORS[codec]  # type: ignore[arg-type]
                sums[0].add_(came[0]), sums[1].add_(sent[0])  # type: ignore[arg-type]
            assert pair.far.sizes == [size(codec, shared=codec, tokens=False)] * 30
        assert off(sums[0], sums[1]) <= ERRORS[codec] / (4 if codec == "int4" else 1)

    asyncio.run(run())


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_is_not_finite_arrives_as_it_is(codec: str, wrong: float) -> None:
    async def run() -> None:
        shared = torch.randn(SHARED.shape)
        async with Pair(codec, codec) as pair:
            for i in range(3):
                sent = some_outputs(shared)
                if i == 1:
                    sent[1].view(-1)[1234] = wrong
                came = await pair.ahead(i, sent)
                if i == 1:
                    assert torch.equal(came[1].isfinite(), sent[1].isfinite())
                    assert torch.allclose(came[1], sent[1], rtol=1e-6, equal_nan=True)
                else:
                    assert off(came[1], sent[1]) <= ERRORS[codec]

    asyncio.run(run())


@pytest.mark.parametrize(("ours", "theirs"), [("none", "int8"), ("int8", "int4"), ("fp16", "bf16")])
def test_a_codec_that_the_job_does_not_allow_is_refused(ours: str, theirs: str) -> None:
    async def run() -> None:
        async with Pair(theirs, ours) as pair:
            await pair.ahead(0, some_outputs(torch.randn(SHARED.shape)))

    with pytest.raises(ChunkMismatchError, match="names the codec"):
        asyncio.run(run())


@pytest.mark.parametrize(
    ("header", "length"),
    [
        ({"i": 0, "c": "int8"}, size("int8", shared="none") - 1),
        ({"i": 0, "c": "int8"}, size("none", shared="none")),
        ({"i": 0, "c": "none"}, size("int8", shared="none")),
        ({"i": 0, "c": "int8", "keep": True}, size("int8")),
        ({"i": 0, "c": "int8"}, size("int8", shared="none")),  # scales of 0
        ({"i": 0, "c": ["int8"]}, 0),
        ({"i": 0, "c": None}, 0),
        ({"i": 0, "c": "x" * 500}, 0),
    ],
)
def test_a_hostile_frame_ends_the_run_by_name(header: dict[str, Any], length: int) -> None:
    async def run() -> None:
        async with Pair("int8", "int8") as pair:
            await pair.near.send(header, [memoryview(bytes(length))])
            await pair.arrival()

    with pytest.raises(RemoteFault):
        asyncio.run(run())


def test_auto_takes_the_codec_that_the_link_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def choose(codecs: tuple[str, ...], sizes: list[int], bps: float, compute_s: float) -> str:
        assert sizes == [size(codec) for codec in codecs]
        assert compute_s >= 0 < bps
        asked.append(codecs)
        return codecs[len(asked) % 4]

    monkeypatch.setattr(neighbours, "choose", choose)

    async def run() -> None:
        shared = torch.randn(SHARED.shape)
        async with Pair("auto", "auto") as pair:
            for i in range(12):
                sent = some_outputs(shared)
                came = await pair.ahead(i, sent)
                assert off(came[1], sent[1]) <= ERRORS[LADDER[(i + 1) % 4]]
            assert pair.near.sizes[1:] == [size(LADDER[(i + 1) % 4]) for i in range(1, 12)]

    asyncio.run(run())
    assert asked == [LADDER] * 12


def test_encoding_keeps_the_compute_threads_number() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    helper = neighbours._own_thread()
    try:
        assert helper.submit(torch.get_num_threads).result() == 1
        assert torch.get_num_threads() == 2
    finally:
        helper.shutdown()
        torch.set_num_threads(before)
