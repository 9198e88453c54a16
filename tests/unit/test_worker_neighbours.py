"""What a stage sends to the next: a shared parameter once for each version of it, everything else always."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ravnest_p2p.core.errors import ChunkMismatchError
from ravnest_p2p.core.pipeline.notes import NO_NOTE, LeftOut, Note
from ravnest_p2p.core.pipeline.window import Echo
from ravnest_p2p.daemon.worker.neighbours import Neighbours
from ravnest_p2p.model import TensorSpec

H, W = TensorSpec((2, 3), "float32", True), TensorSpec((4, 3), "float32", True)
BOTH = W.nbytes + H.nbytes


class End:
    """One end of a link that hands frames over, and keeps what they weighed."""

    remote = "peer"
    bytes_sent, write_s = 0, 0.0

    def __init__(self) -> None:
        self.other = self
        self.frames: asyncio.Queue[SimpleNamespace] = asyncio.Queue()
        self.sizes: list[int] = []

    async def send(self, header: dict[str, Any], buffers: Sequence[memoryview]) -> None:
        payload = bytearray(b"".join(buffers))
        self.sizes.append(len(payload))
        await self.other.frames.put(SimpleNamespace(header=header, payload=payload))

    async def receive(self) -> SimpleNamespace:
        return await self.frames.get()


def a_link() -> tuple[End, End]:
    near, far = End(), End()
    near.other, far.other = far, near
    return near, far


class Server:
    def __init__(self, end: End) -> None:
        self._end = end

    def expect(self, *_: object) -> End:
        return self._end

    async def dial(self, *_: object) -> End:
        return self._end


def a_stage(end: End, number: int) -> Neighbours:
    carried = {"sends": (W, H), "sent_params": (0,), "receives": (W, H), "received_params": (0,)}
    cluster = SimpleNamespace(stages=[SimpleNamespace(peer=f"peer {n}") for n in range(2)])
    return Neighbours(Server(end), cluster, 0, number, SimpleNamespace(**carried))  # type: ignore[arg-type]


async def carry(micro_batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[list[list[Tensor]], list[int]]:
    """What arrives of each micro-batch, and the bytes of each frame."""
    near, far = a_link()
    before, after = a_stage(near, 0), a_stage(far, 1)
    await before.dial(lambda peer: asyncio.sleep(0, "nonce"))
    after.expect()
    came = asyncio.Semaphore(0)
    tasks = [*before.start(print, print), *after.start(lambda i, slowest_s: came.release(), print)]
    found = []
    for i, outputs in enumerate(micro_batches):
        before.send_activation(i, outputs, 0.5)
        await asyncio.wait_for(came.acquire(), 5)
        found.append(after.take_activation(i))
    for task in tasks:
        task.cancel()
    return found, near.sizes


def test_a_shared_parameter_goes_once_for_each_version() -> None:
    w1, w2 = torch.randn(4, 3), torch.randn(4, 3)
    sent = [(w, torch.randn(2, 3)) for w in (w1, w1.detach(), w1, w2, w2, w1)]
    came, sizes = asyncio.run(carry(sent))
    assert sizes == [BOTH, H.nbytes, H.nbytes, BOTH, H.nbytes, BOTH]
    for found, expected in zip(came, sent, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert came[0][0] is came[1][0] is came[2][0]
    assert came[2][0] is not came[3][0]


def test_new_weights_are_never_taken_for_the_freed_ones_before() -> None:
    fresh = ((torch.full((4, 3), float(n)), torch.randn(2, 3)) for n in range(20))
    came, _ = asyncio.run(carry(fresh))
    assert [weight[0, 0].item() for weight, _ in came] == list(range(20))


def test_what_is_left_out_crosses_without_tensors_and_changes_nothing_of_what_is_kept() -> None:
    w, h, note = torch.randn(4, 3), torch.randn(2, 3), Note(LeftOut(0, "an activation is not finite"))

    async def carry_both_ways() -> tuple[list[list[Tensor]], list[Note], list[Any], Note, list[int]]:
        near, far = a_link()
        before, after = a_stage(near, 0), a_stage(far, 1)
        await before.dial(lambda peer: asyncio.sleep(0, "nonce"))
        after.expect()
        came, back = asyncio.Semaphore(0), asyncio.Semaphore(0)
        tasks = [
            *before.start(print, lambda i, echo: back.release()),
            *after.start(lambda i, slowest_s: came.release(), print),
        ]
        found = []
        for i, sent in enumerate([(w, h), None, (w, h)]):
            before.send_activation(i, sent or (), 0.5, NO_NOTE if sent else note)
            await asyncio.wait_for(came.acquire(), 5)
            found.append(after.take_activation(i))
        notes = [after.activation_note(i) for i in range(3)]
        after.send_gradient(0, (), Echo(0.5, 0.25, 0.25, 1.0), note)
        await asyncio.wait_for(back.acquire(), 5)
        given = before.take_gradient(0), before.gradient_note(0)
        for task in tasks:
            task.cancel()
        return found, notes, *given, near.sizes + far.sizes

    found, notes, gradients, of_gradient, sizes = asyncio.run(carry_both_ways())
    assert sizes == [BOTH, 0, H.nbytes, 0]
    assert found[1] == gradients == []
    assert all(torch.equal(a, b) for a, b in zip(found[2], (w, h), strict=True))
    assert notes == [NO_NOTE, note, NO_NOTE]
    assert of_gradient == note


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        ([({"i": 0, "keep": True}, H.nbytes)], "of which none came"),
        ([({"i": 0}, H.nbytes)], "bytes came where"),
        ([({"i": 0}, BOTH), ({"i": 1, "keep": True}, BOTH)], "bytes came where"),
        ([({"i": 0}, BOTH), ({"i": 1, "keep": 1}, H.nbytes)], "bytes came where"),
        ([({"i": 0}, BOTH), ({"i": 1, "keep": [0]}, H.nbytes)], "bytes came where"),
        ([({"i": -1, "keep": True}, H.nbytes)], "names micro-batch"),
        ([({"i": 0, "out": 0}, BOTH)], "is left out and has"),
        ([({"i": 0, "out": 2}, 0)], "left out by stage"),
        ([({"i": 0, "norm": float("nan")}, BOTH)], "names the norm"),
    ],
)
def test_a_sender_that_keeps_what_was_never_there_is_refused(
    frames: list[tuple[dict[str, Any], int]], says: str
) -> None:
    async def hear() -> None:
        near, far = a_link()
        stage = a_stage(far, 1)
        stage.expect()
        receiving = stage.start(lambda i, slowest_s: None, print)[0]
        for header, size in frames:
            await near.send({"t": 500_000, **header}, [memoryview(bytes(size))])
        await asyncio.wait_for(receiving, 5)

    with pytest.raises(ChunkMismatchError, match=says):
        asyncio.run(hear())
