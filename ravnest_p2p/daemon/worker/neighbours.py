"""The links of a stage to the stages before and after it.

Each link is dialled by the earlier stage; activations go up it and gradients come back. Sending never holds
up the compute thread: frames wait in a queue whose length the schedule's window bounds.
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
        self._receives_gradients = [spec for spec in program.sends if spec.differentiable]
        self._sends_gradients = [spec for spec in program.receives if spec.differentiable]
        self._before: Link | None = None
        self._after: Link | None = None
        self._activations: dict[int, list[Tensor]] = {}
        self._gradients: dict[int, list[Tensor | None]] = {}
        self._outgoing: dict[Link, asyncio.Queue[tuple[int, list[memoryview]]]] = {}

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
        self, activation_arrived: Callable[[int], None], gradient_arrived: Callable[[int], None]
    ) -> list[asyncio.Task[Any]]:
        """Begin to receive and send; the tasks fail with what breaks a link."""
        tasks: list[Any] = []
        if self._before is not None:
            tasks.append(self._receive_activations(self._before, activation_arrived))
        if self._after is not None:
            tasks.append(self._receive_gradients(self._after, gradient_arrived))
        for link in self.links:
            self._outgoing[link] = asyncio.Queue()
            tasks.append(self._send(link, self._outgoing[link]))
        return [asyncio.create_task(task) for task in tasks]

    def take_activation(self, microbatch: int) -> list[Tensor]:
        return self._activations.pop(microbatch) if self._before is not None else []

    def take_gradient(self, microbatch: int) -> list[Tensor | None]:
        return self._gradients.pop(microbatch) if self._after is not None else []

    def send_activation(self, microbatch: int, outputs: Sequence[Tensor]) -> None:
        assert self._after is not None, "only the last stage has no stage after it, and it sends none"
        self._outgoing[self._after].put_nowait((microbatch, pack(outputs)))

    def send_gradient(self, microbatch: int, gradients: Sequence[Tensor | None]) -> None:
        if self._before is None:
            return
        wanted = [g for g, spec in zip(gradients, self._receives, strict=True) if spec.differentiable]
        filled = [
            torch.zeros(spec.shape, dtype=spec.torch_dtype) if g is None else g
            for g, spec in zip(wanted, self._sends_gradients, strict=True)
        ]
        self._outgoing[self._before].put_nowait((microbatch, pack(filled)))

    async def flush(self) -> None:
        """Wait until everything queued has been handed to the links."""
        await bounded(asyncio.gather(*(queue.join() for queue in self._outgoing.values())), FLUSH_TIMEOUT_S)

    async def _send(self, link: Link, queue: asyncio.Queue[tuple[int, list[memoryview]]]) -> None:
        while True:
            microbatch, buffers = await queue.get()
            with lost(link):
                await link.send({"i": microbatch}, buffers)
            queue.task_done()

    async def _receive_activations(self, link: Link, arrived: Callable[[int], None]) -> None:
        while True:
            with lost(link):
                frame = await link.receive()
            i = _microbatch(frame.header)
            self._activations[i] = unpack(frame.payload, self._receives, what=f"activation {i}")
            arrived(i)

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
