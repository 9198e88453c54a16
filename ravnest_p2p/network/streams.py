"""Raw binary streams over p2pd with bounded waits: open one, serve many.

Problem: hivemind's `stream_open` leaks its socket when the open fails or is cancelled, reads with 64 KiB
buffers, and a stream handler that raises leaves its stream open. Solution: open with our own socket
handling, and wrap every handler so that its stream is closed, its errors are counted, and only so many
run at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError
from hivemind.p2p import P2P
from hivemind.p2p.p2p_daemon_bindings.datastructures import PeerID, StreamInfo
from hivemind.p2p.p2p_daemon_bindings.utils import (
    P2PDaemonError,
    raise_if_failed,
    read_pbmsg_safe,
    write_pbmsg,
)
from hivemind.proto import p2pd_pb2

from ravnest_p2p.core.errors import (
    BusyError,
    FrameTruncatedError,
    LocalDaemonError,
    PeerUnreachableError,
    RemoteFault,
)
from ravnest_p2p.core.types import PeerId
from ravnest_p2p.network.frames import Frame, FrameKind, Limits, Packed, pack
from ravnest_p2p.network.p2pd_waits import bounded
from ravnest_p2p.network.wire import Wire

logger = logging.getLogger(__name__)

TRANSPORT_ERRORS = (OSError, EOFError, FrameTruncatedError)
"""How a broken stream shows; says nothing about whose fault it is."""


def peer_id_of(peer: PeerId) -> PeerID:
    """hivemind's form of a peer id.

    Raises:
        PeerUnreachableError: the text is no peer id.
    """
    try:
        return PeerID.from_base58(peer)
    except ValueError:
        raise PeerUnreachableError(f"{peer!r} is not a peer id") from None


@dataclass(slots=True)
class Stream:
    """One open stream: who is at the other end, and frames in and out.

    Attributes:
        begun_by: asyncio's reader and writer, which would close the connection if they were let go.
    """

    peer: PeerId
    wire: Wire
    begun_by: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, kind: FrameKind, frame: Packed | dict[str, Any], seq: int = 0, ack: int = 0) -> None:
        """Sends one frame; a plain map is packed first.

        Raises:
            OSError: the stream is broken or closed.
        """
        packed = frame if isinstance(frame, Packed) else pack(frame)
        await self.wire.write(packed.encode(kind, seq, ack))

    async def receive(self, limits: Limits, on_bytes: Callable[[int], None] | None = None) -> Frame:
        """Reads one frame; see `Wire.read`."""
        return await self.wire.read(limits, on_bytes)

    def close(self) -> None:
        """Closes at once; safe to call twice."""
        with contextlib.suppress(*TRANSPORT_ERRORS, RuntimeError):
            self.wire.close()


def _stream(peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Stream:
    """What hivemind began to read and write by asyncio's streams, taken over."""
    wire = Wire.taken_over(writer.transport, bytes(reader._buffer))  # type: ignore[attr-defined]
    return Stream(peer, wire, (reader, writer))


async def open_stream(p2p: P2P, peer: PeerId, protocol: str, timeout_s: float) -> Stream:
    """Opens a stream. That it is open proves nothing: p2pd also opens towards a dead handler.

    Raises:
        PeerUnreachableError: not opened within `timeout_s`, or p2pd found no way or no such protocol.
    """
    target = peer_id_of(peer)
    opening = asyncio.ensure_future(_open(p2p, target, peer, protocol))
    try:
        await asyncio.wait((opening,), timeout=timeout_s)
    except asyncio.CancelledError:
        opening.cancel()
        opening.add_done_callback(_close_opened)
        raise
    if not opening.done():
        opening.cancel()
        raise PeerUnreachableError(f"{peer} opened no stream {protocol} within {timeout_s:.1f} s")
    try:
        return opening.result()
    except (*TRANSPORT_ERRORS, P2PDaemonError, DecodeError) as error:
        raise PeerUnreachableError(f"no stream {protocol} to {peer}: {error}") from None


def _close_opened(opening: asyncio.Task[Stream]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


async def _open(p2p: P2P, target: PeerID, peer: PeerId, protocol: str) -> Stream:
    path = p2p._daemon_listen_maddr.value_for_protocol("unix")
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        request = p2pd_pb2.Request(
            type=p2pd_pb2.Request.STREAM_OPEN,
            streamOpen=p2pd_pb2.StreamOpenRequest(peer=target.to_bytes(), proto=[protocol]),
        )
        await write_pbmsg(writer, request)
        response = p2pd_pb2.Response()
        await read_pbmsg_safe(reader, response)
        raise_if_failed(response)
    except BaseException:
        writer.close()
        raise
    return _stream(peer, reader, writer)


class StreamService:
    """Serves one protocol: at most `max_streams` at once, `max_per_peer` of one peer; the rest are closed.

    Attributes:
        refused: how many streams ended by which error of the remote, or were too many ("busy").
    """

    def __init__(
        self,
        p2p: P2P,
        protocol: str,
        handler: Callable[[Stream], Coroutine[Any, Any, None]],
        max_streams: int,
        max_per_peer: int,
        refused: Counter[str] | None = None,
    ) -> None:
        self.protocol = protocol
        self.refused: Counter[str] = Counter() if refused is None else refused
        self._p2p = p2p
        self._handler = handler
        self._max_streams = max_streams
        self._max_per_peer = max_per_peer
        self._running: dict[asyncio.Task[None], PeerId] = {}

    async def start(self, timeout_s: float = 10.0) -> None:
        """Registers the protocol.

        Raises:
            LocalDaemonError: our own p2pd does not take it.
        """
        try:
            await bounded(self._p2p.add_binary_stream_handler(self.protocol, self._serve), timeout_s)
        except (asyncio.TimeoutError, P2PDaemonError, *TRANSPORT_ERRORS) as error:
            raise LocalDaemonError(f"p2pd did not register {self.protocol}: {error!r}") from None

    async def close(self, timeout_s: float = 2.0) -> None:
        """Takes the protocol back and ends its streams."""
        with contextlib.suppress(asyncio.TimeoutError, P2PDaemonError, KeyError, *TRANSPORT_ERRORS):
            await bounded(self._p2p.remove_binary_stream_handler(self.protocol), timeout_s)
        running = list(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=timeout_s)

    async def _serve(
        self, info: StreamInfo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        peer = PeerId(info.peer_id.to_base58())
        stream = _stream(peer, reader, writer)
        mine = sum(other == peer for other in self._running.values())
        if len(self._running) >= self._max_streams or mine >= self._max_per_peer:
            self.refused["busy"] += 1
            stream.close()
            return
        task = asyncio.ensure_future(self._handler(stream))
        self._running[task] = peer
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()
            del self._running[task]
            stream.close()
        if task.cancelled() or task.exception() is None:
            return
        error = task.exception()
        if isinstance(error, TRANSPORT_ERRORS):
            return
        if isinstance(error, RemoteFault):
            self.refused[type(error).__name__] += 1
            # Being asked for more than we give is everyday life, not news.
            level = logging.DEBUG if isinstance(error, BusyError) else logging.INFO
            logger.log(level, "stream %s of %s refused: %s", self.protocol, peer, error)
        else:
            logger.error("stream %s of %s failed", self.protocol, peer, exc_info=error)
