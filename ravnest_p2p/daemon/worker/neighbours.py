"""The links of a stage to the stages before and after it.

Each link is dialled by the earlier stage; activations go up it and gradients come back. Sending never holds
up the compute thread: frames wait in a queue whose length the schedule's window bounds. A parameter that
later stages use too goes up the link once for each version of it: frames after that say to keep it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ravnest_p2p.core.errors import ChunkMismatchError
from ravnest_p2p.core.types import ClusterPlan, PeerId
from ravnest_p2p.daemon.worker.tensors import pack, unpack
from ravnest_p2p.daemon.worker.wires import link_limits, lost
from ravnest_p2p.model import StageProgram
from ravnest_p2p.network.link_server import LinkServer
from ravnest_p2p.network.links import Link
from ravnest_p2p.network.p2pd_waits import bounded

FLUSH_TIMEOUT_S = 10.0


class Neighbours:
    """Activations and gradients of one stage, by micro-batch number."""

    def __init__(
        self, server: LinkServer, cluster: ClusterPlan, cluster_index: int, stage: int, program: StageProgram
    ) -> None:
        self._server = server
        self._cluster = cluster
        self._stage = stage
        self._names = [f"pipe/{cluster_index}/{s}" for s in range(len(cluster.stages) - 1)]
        self._receives = program.receives
        self._sends = program.sends
        self._received_params = program.received_params
        self._sent_params = program.sent_params
        self._receives_gradients = [spec for spec in program.sends if spec.differentiable]
        self._sends_gradients = [spec for spec in program.receives if spec.differentiable]
        self._before: Link | None = None
        self._after: Link | None = None
        self._activations: dict[int, list[Tensor]] = {}
        self._gradients: dict[int, list[Tensor | None]] = {}
        self._outgoing: dict[Link, asyncio.Queue[tuple[dict[str, Any], list[memoryview]]]] = {}
        self._last_sent: list[Tensor] = []
        self._kept: list[Tensor] = []

    @property
    def links(self) -> list[Link]:
        return [link for link in (self._before, self._after) if link is not None]

    def expect(self) -> None:
        """Let the stage before dial us."""
        if self._stage > 0:
            limits = link_limits(sum(spec.nbytes for spec in self._receives))
            peer = self._cluster.stages[self._stage - 1].peer
            self._before = self._server.expect(self._names[self._stage - 1], peer, limits)

    async def dial(self, nonce_of: Callable[[PeerId], Awaitable[str]]) -> None:
        """Dial the stage after us, as soon as its nonce is known."""
        if self._stage + 1 < len(self._cluster.stages):
            peer = self._cluster.stages[self._stage + 1].peer
            nonce = await nonce_of(peer)
            limits = link_limits(sum(spec.nbytes for spec in self._sends))
            self._after = await self._server.dial(peer, nonce, self._names[self._stage], limits)

    def start(
        self,
        activation_arrived: Callable[[int], None],
        gradient_arrived: Callable[[int], None],
        sent: Callable[[str, int, int], None] = lambda what, microbatch, size_bytes: None,
    ) -> list[asyncio.Task[Any]]:
        """Begin to receive and send; the tasks fail with what breaks a link.

        Args:
            sent: told of each activation ("a") and gradient ("g") that a link took, and its bytes.
        """
        tasks: list[Any] = []
        if self._before is not None:
            tasks.append(self._receive_activations(self._before, activation_arrived))
        if self._after is not None:
            tasks.append(self._receive_gradients(self._after, gradient_arrived))
        for link in self.links:
            self._outgoing[link] = asyncio.Queue()
            tasks.append(self._send(link, self._outgoing[link], sent))
        return [asyncio.create_task(task) for task in tasks]

    def take_activation(self, microbatch: int) -> list[Tensor]:
        return self._activations.pop(microbatch) if self._before is not None else []

    def take_gradient(self, microbatch: int) -> list[Tensor | None]:
        return self._gradients.pop(microbatch) if self._after is not None else []

    def send_activation(self, microbatch: int, outputs: Sequence[Tensor]) -> None:
        assert self._after is not None, "only the last stage has no stage after it, and it sends none"
        params = [outputs[place] for place in self._sent_params]
        known = [tensor.data_ptr() for tensor in self._last_sent]
        # What was sent last is still held, so nothing else can lie where it lies, and it never changes.
        if params and known == [tensor.data_ptr() for tensor in params]:
            rest = [output for place, output in enumerate(outputs) if place not in self._sent_params]
            self._outgoing[self._after].put_nowait(({"i": microbatch, "keep": True}, pack(rest)))
        else:
            self._last_sent = params
            self._outgoing[self._after].put_nowait(({"i": microbatch}, pack(outputs)))

    def send_gradient(self, microbatch: int, gradients: Sequence[Tensor | None]) -> None:
        if self._before is None:
            return
        wanted = [g for g, spec in zip(gradients, self._receives, strict=True) if spec.differentiable]
        filled = [
            torch.zeros(spec.shape, dtype=spec.torch_dtype) if g is None else g
            for g, spec in zip(wanted, self._sends_gradients, strict=True)
        ]
        self._outgoing[self._before].put_nowait(({"i": microbatch}, pack(filled)))

    async def flush(self) -> None:
        """Wait until everything queued has been handed to the links."""
        await bounded(asyncio.gather(*(queue.join() for queue in self._outgoing.values())), FLUSH_TIMEOUT_S)

    async def _send(
        self,
        link: Link,
        queue: asyncio.Queue[tuple[dict[str, Any], list[memoryview]]],
        sent: Callable[[str, int, int], None],
    ) -> None:
        what = "a" if link is self._after else "g"
        while True:
            header, buffers = await queue.get()
            with lost(link):
                await link.send(header, buffers)
            sent(what, header["i"], sum(buffer.nbytes for buffer in buffers))
            queue.task_done()

    async def _receive_activations(self, link: Link, arrived: Callable[[int], None]) -> None:
        while True:
            with lost(link):
                frame = await link.receive()
            i = _microbatch(frame.header)
            self._activations[i] = self._unpack(i, frame.payload, keep=frame.header.get("keep") is True)
            arrived(i)

    def _unpack(self, i: int, payload: bytes | bytearray | memoryview, *, keep: bool) -> list[Tensor]:
        """What came with micro-batch i, and where it says to keep them, the parameters that came before."""
        places = self._received_params
        if not keep:
            tensors = unpack(payload, self._receives, what=f"activation {i}")
            self._kept = [tensors[place] for place in places]
            return tensors
        if not self._kept:
            raise ChunkMismatchError(f"activation {i} keeps parameters, of which none came")
        specs = [spec for place, spec in enumerate(self._receives) if place not in places]
        others = iter(unpack(payload, specs, what=f"activation {i}"))
        kept = dict(zip(places, self._kept, strict=True))
        return [kept[p] if p in kept else next(others) for p in range(len(self._receives))]

    async def _receive_gradients(self, link: Link, arrived: Callable[[int], None]) -> None:
        while True:
            with lost(link):
                frame = await link.receive()
            i = _microbatch(frame.header)
            values = iter(unpack(frame.payload, self._receives_gradients, what=f"gradient {i}"))
            self._gradients[i] = [next(values) if spec.differentiable else None for spec in self._sends]
            arrived(i)


def _microbatch(header: dict[str, Any]) -> int:
    i = header.get("i")
    if not isinstance(i, int) or isinstance(i, bool) or i < 0:
        raise ChunkMismatchError(f"a frame names micro-batch {i!r}")
    return i
