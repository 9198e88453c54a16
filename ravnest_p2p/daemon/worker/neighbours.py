"""The links of a stage to the stages before and after it.

Each link is dialled by the earlier stage; activations go up it and gradients come back. Sending never holds
up the compute thread: frames wait in a queue whose length the schedule's window bounds. A parameter that
later stages use too goes up the link once for each version of it: frames after that say to keep it.

What a job allows to compress is encoded and decoded in a thread of its own, one frame after another, while
the event loop and the compute thread go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ravnest_p2p.core.compression import AUTO, NONE, allowed, choose
from ravnest_p2p.core.errors import ChunkMismatchError
from ravnest_p2p.core.pipeline.notes import NO_NOTE, Note, header_of, note_in
from ravnest_p2p.core.pipeline.window import Echo
from ravnest_p2p.core.types import ClusterPlan, PeerId
from ravnest_p2p.daemon.worker.crossing import CODEC, Crossing
from ravnest_p2p.daemon.worker.headers import (
    MICROBATCH,
    echo_from,
    echo_header,
    microbatch_from,
    slowest_from,
    slowest_header,
)
from ravnest_p2p.daemon.worker.pace import ComputeTime, LinkRate
from ravnest_p2p.daemon.worker.wires import link_limits, lost
from ravnest_p2p.model import StageProgram
from ravnest_p2p.network.link_server import LinkServer
from ravnest_p2p.network.links import Link
from ravnest_p2p.network.p2pd_waits import bounded

FLUSH_TIMEOUT_S = 10.0

Sent = Callable[[str, int, int, float], None]

Result = TypeVar("Result")


class Outgoing(NamedTuple):
    """A frame that waits to be packed: the tensors of these places, or of all; none where it is left out."""

    microbatch: int
    tensors: Sequence[Tensor]
    header: Mapping[str, Any]
    places: Sequence[int] | None = None


class Neighbours:
    """Activations and gradients of one stage, by micro-batch number.

    Args:
        compression: the job's setting.
        seed: of the chance in what is compressed.

    Attributes:
        compute_time: to be told how long operations take; decides what is compressed.
    """

    def __init__(
        self,
        server: LinkServer,
        cluster: ClusterPlan,
        cluster_index: int,
        stage: int,
        program: StageProgram,
        *,
        compression: str = NONE,
        seed: int = 0,
    ) -> None:
        self._server = server
        self._cluster = cluster
        self._stage = stage
        self._names = [f"pipe/{cluster_index}/{s}" for s in range(len(cluster.stages) - 1)]
        self._receives = program.receives
        self._sends = program.sends
        self._received_params = program.received_params
        self._sent_params = program.sent_params
        self._sends_gradients = [spec for spec in program.receives if spec.differentiable]
        codecs = allowed(compression)
        back = [place for place, spec in enumerate(self._receives) if spec.differentiable]
        self._compression = compression
        self._ahead = Crossing(
            self._sends, codecs, exact=self._sent_params, predicted=True, seed=seed + stage
        )
        self._from_before = Crossing(self._receives, codecs, exact=self._received_params, predicted=True)
        self._back = Crossing(
            self._sends_gradients,
            codecs,
            summed=[n for n, place in enumerate(back) if place in self._received_params],
            seed=seed + stage,
        )
        self._from_after = Crossing([spec for spec in self._sends if spec.differentiable], codecs)
        self._helper = _own_thread() if compression != NONE else None
        self.compute_time = ComputeTime()
        self._before: Link | None = None
        self._after: Link | None = None
        self._activations: dict[int, list[Tensor]] = {}
        self._gradients: dict[int, list[Tensor | None]] = {}
        self._activation_notes: dict[int, Note] = {}
        self._gradient_notes: dict[int, Note] = {}
        self._outgoing: dict[Link, asyncio.Queue[Outgoing]] = {}
        self._last_sent: list[Tensor] = []
        self._kept: list[Tensor] = []

    @property
    def links(self) -> list[Link]:
        return [link for link in (self._before, self._after) if link is not None]

    @property
    def rtt_after_s(self) -> float:
        """Round trip of the link to the stage after; 0 where there is none, or nothing is known of it."""
        return (self._after.rtt_s if self._after is not None else None) or 0.0

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
        activation_arrived: Callable[[int, float], None],
        gradient_arrived: Callable[[int, Echo], None],
        sent: Sent = lambda what, microbatch, size_bytes, busy_s: None,
    ) -> list[asyncio.Task[Any]]:
        """Begin to receive and send; the tasks fail with what breaks a link.

        Args:
            activation_arrived, gradient_arrived: told of each micro-batch, and what the sender says of the
                time that the pipeline takes (`core.pipeline.window`).
            sent: told of each activation ("a") and gradient ("g") that a link took, its bytes, and the
                seconds for which it kept the link busy.
        """
        tasks: list[Any] = []
        if self._before is not None:
            tasks.append(self._receive_activations(self._before, activation_arrived))
        if self._after is not None:
            tasks.append(self._receive_gradients(self._after, gradient_arrived))
        for link, crossing in ((self._before, self._back), (self._after, self._ahead)):
            if link is not None:
                self._outgoing[link] = asyncio.Queue()
                tasks.append(self._send(link, self._outgoing[link], crossing, sent))
        return [asyncio.create_task(task) for task in tasks]

    async def close(self) -> None:
        """End the thread of the codecs, once the tasks of `start` have ended."""
        if self._helper is not None:
            self._helper.shutdown(wait=False, cancel_futures=True)

    def take_activation(self, microbatch: int) -> list[Tensor]:
        return self._activations.pop(microbatch) if self._before is not None else []

    def take_gradient(self, microbatch: int) -> list[Tensor | None]:
        return self._gradients.pop(microbatch) if self._after is not None else []

    def activation_note(self, microbatch: int) -> Note:
        """What came along with an activation."""
        return self._activation_notes.pop(microbatch, NO_NOTE)

    def gradient_note(self, microbatch: int) -> Note:
        """What came along with a gradient."""
        return self._gradient_notes.pop(microbatch, NO_NOTE)

    def send_activation(
        self, microbatch: int, outputs: Sequence[Tensor], slowest_s: float, note: Note = NO_NOTE
    ) -> None:
        assert self._after is not None, "only the last stage has no stage after it, and it sends none"
        header = {**header_of(note), **slowest_header(slowest_s)}
        if note.left_out is not None:
            self._outgoing[self._after].put_nowait(Outgoing(microbatch, (), header))
            return
        params = [outputs[place] for place in self._sent_params]
        known = [tensor.data_ptr() for tensor in self._last_sent]
        # What was sent last is still held, so nothing else can lie where it lies, and it never changes.
        if params and known == [tensor.data_ptr() for tensor in params]:
            rest = _others(len(outputs), self._sent_params)
            self._outgoing[self._after].put_nowait(
                Outgoing(microbatch, [outputs[place] for place in rest], header, rest)
            )
        else:
            self._last_sent = params
            self._outgoing[self._after].put_nowait(Outgoing(microbatch, outputs, header))

    def send_gradient(
        self, microbatch: int, gradients: Sequence[Tensor | None], echo: Echo, note: Note = NO_NOTE
    ) -> None:
        if self._before is None:
            return
        header = {**header_of(note), **echo_header(echo)}
        if note.left_out is not None:
            self._outgoing[self._before].put_nowait(Outgoing(microbatch, (), header))
            return
        wanted = [g for g, spec in zip(gradients, self._receives, strict=True) if spec.differentiable]
        filled = [
            torch.zeros(spec.shape, dtype=spec.torch_dtype) if g is None else g
            for g, spec in zip(wanted, self._sends_gradients, strict=True)
        ]
        self._outgoing[self._before].put_nowait(Outgoing(microbatch, filled, header))

    async def flush(self) -> None:
        """Wait until everything queued has been handed to the links."""
        await bounded(asyncio.gather(*(queue.join() for queue in self._outgoing.values())), FLUSH_TIMEOUT_S)

    async def _send(
        self,
        link: Link,
        queue: asyncio.Queue[Outgoing],
        crossing: Crossing,
        sent: Sent,
    ) -> None:
        what = "a" if crossing is self._ahead else "g"
        rate = LinkRate(link)
        usual = _others(crossing.count, self._sent_params if crossing is self._ahead else ())
        sizes = [crossing.nbytes(name, usual) for name in crossing.codecs]
        while True:
            frame = await queue.get()
            bps = rate.bps
            name = crossing.codecs[-1] if frame.tensors else NONE
            if self._compression == AUTO and name != NONE:
                name = choose(crossing.codecs, sizes, bps, self.compute_time.seconds)
            used, buffers = await self._aside(
                name,
                lambda: crossing.pack(name, frame.tensors, frame.places),  # noqa: B023 (awaited here)
            )
            keep = {} if frame.places is None else {"keep": True}
            header = {MICROBATCH: frame.microbatch, CODEC: used, **keep, **frame.header}
            with lost(link):
                await link.send(header, buffers)
            size_bytes = sum(memoryview(buffer).nbytes for buffer in buffers)
            sent(what, frame.microbatch, size_bytes, 8 * size_bytes / bps)
            queue.task_done()

    async def _receive_activations(self, link: Link, arrived: Callable[[int, float], None]) -> None:
        while True:
            with lost(link):
                frame = await link.receive()
            i = microbatch_from(frame.header)
            name, keep = self._from_before.named(frame.header), frame.header.get("keep") is True
            note, payload = note_in(frame.header, len(self._cluster.stages)), frame.payload
            if note.left_out is None:
                self._activations[i] = await self._aside(
                    name,
                    lambda: self._unpack(i, name, payload, keep=keep),  # noqa: B023 (awaited here)
                )
            else:
                self._activations[i] = _nothing(payload, f"activation {i}")
            self._activation_notes[i] = note
            arrived(i, slowest_from(frame.header))

    def _unpack(self, i: int, name: str, payload: bytearray, *, keep: bool) -> list[Tensor]:
        """What came with micro-batch i, and where it says to keep them, the parameters that came before."""
        places, what = self._received_params, f"activation {i}"
        if not keep:
            tensors = self._from_before.unpack(name, payload, what=what)
            self._kept = [tensors[place] for place in places]
            return tensors
        if not self._kept:
            raise ChunkMismatchError(f"activation {i} keeps parameters, of which none came")
        rest = _others(len(self._receives), places)
        found = dict(zip(rest, self._from_before.unpack(name, payload, rest, what=what), strict=True))
        found |= zip(places, self._kept, strict=True)
        return [found[place] for place in range(len(self._receives))]

    async def _receive_gradients(self, link: Link, arrived: Callable[[int, Echo], None]) -> None:
        while True:
            with lost(link):
                frame = await link.receive()
            i = microbatch_from(frame.header)
            name, payload = self._from_after.named(frame.header), frame.payload
            note = note_in(frame.header, len(self._cluster.stages))
            if note.left_out is None:
                values = iter(
                    await self._aside(
                        name,
                        lambda: self._from_after.unpack(name, payload, what=f"gradient {i}"),  # noqa: B023
                    )
                )
                self._gradients[i] = [next(values) if spec.differentiable else None for spec in self._sends]
            else:
                self._gradients[i] = _nothing(payload, f"gradient {i}")
            self._gradient_notes[i] = note
            arrived(i, echo_from(frame.header))

    async def _aside(self, codec: str, work: Callable[[], Result]) -> Result:
        """Run what takes time in the codecs' thread; what is exact is only looked at, here."""
        if codec == NONE or self._helper is None:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._helper, work)


def _others(count: int, places: Sequence[int]) -> list[int]:
    return [place for place in range(count) if place not in places]


def _nothing(payload: bytearray, what: str) -> list[Any]:
    if payload:
        raise ChunkMismatchError(f"{what} is left out and has {len(payload)} bytes")
    return []


def _own_thread() -> ThreadPoolExecutor:
    """A thread whose torch operations take one core, so that the computation keeps its own.

    The number belongs to a thread once it has asked for it, but is what every new thread begins with, too.
    """
    threads = torch.get_num_threads()
    helper = ThreadPoolExecutor(1, thread_name_prefix="codec")
    helper.submit(torch.get_num_threads).result()
    helper.submit(torch.set_num_threads, 1).result()
    torch.set_num_threads(threads)
    return helper
