"""The gateway: requesters' streams, answered by this peer on behalf of the swarm.

Problem: whoever reaches this peer may open streams, and may flood, stall, lie or vanish on them. Solution:
a bounded number of streams, in all and for each remote; a deadline on every wait; lengths checked
before anything is read; uploads refused by size before a byte is taken and hash-checked before they
are kept. An error is answered by name, and after one the stream is closed, since what follows on it
cannot be trusted to be a request. What the answers say is the `GatewayBackend`'s business.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from typing import Any, BinaryIO, Protocol

from hivemind.p2p import P2P
from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo

from ravnest_p2p.core.errors import (
    BlobError,
    BusyError,
    FrameFormatError,
    OurFault,
    PeerUnreachableError,
    RavnestError,
)
from ravnest_p2p.core.types import BlobHash, JobId
from ravnest_p2p.network import gateway as wire
from ravnest_p2p.network.blobs import BlobStore
from ravnest_p2p.network.p2pd_waits import bounded

_log = logging.getLogger(__name__)
MAX_STREAMS = 64
MAX_STREAMS_OF_ONE = 16
IDLE_S = 120.0
MESSAGE_S = 30.0
ANSWER_S = 110.0
_READ_AHEAD_BYTES = 16 * wire.CHUNK_BYTES


class GatewayBackend(Protocol):
    """What the peer knows and does. Methods may raise any `RavnestError`; the requester gets it by name."""

    async def hello(self) -> dict[str, Any]:
        """{"peer", "version", "swarm", "addresses": [multiaddress with /p2p/…], "time_s": DHT time}"""

    async def peers(self) -> list[dict[str, Any]]:
        """[{"peer", "addresses", …}]; "addresses" lets a requester fall over to that peer."""

    async def epoch(self) -> dict[str, Any]:
        """{"epoch", "term", "phase", "leader", "plan", "peers": [{"peer", "obeys", "refused"}], …}"""

    async def jobs(self) -> list[dict[str, Any]]:
        """Status of each job known."""

    async def status(self, job: JobId) -> dict[str, Any]:
        """Status of one job."""

    async def logs(self, job: JobId | None, after: int, limit: int) -> list[dict[str, Any]]:
        """Lines {"seq", "time_s", "level", "text"} with "seq" > `after`, of one job or of the peer itself.

        The oldest `limit` of them, in order.
        """

    async def trace(self, job: JobId, last_s: float) -> dict[str, Any]:
        """{"stages": [{"peer", "generation", "cluster", "stage", "spans"}], "left_out": [{"peer", "reason"}]}

        What each stage of a job did in the last seconds, and why a member's answer is not among them.
        """

    async def submit(self, sealed: bytes) -> JobId:
        """Check a sealed JobRecord, whose blobs were uploaded here, and put the job into the directory."""

    async def cancel(self, sealed: bytes) -> None:
        """Check a sealed CancelRecord and make it known."""

    async def result(self, job: JobId) -> dict[str, Any]:
        """{"phase", "pieces": [{"lo", "hi", "blob", "batches_done"}]}"""

    async def fetch(self, blob: BlobHash) -> None:
        """Bring a blob of a known job into the local store, or raise `BlobError`."""


class Gateway:
    """Serves `wire.PROTOCOL` on a p2pd until `stop`."""

    def __init__(
        self,
        p2p: P2P,
        backend: GatewayBackend,
        blobs: BlobStore,
        *,
        idle_s: float = IDLE_S,
        message_s: float = MESSAGE_S,
    ) -> None:
        self._p2p = p2p
        self._backend = backend
        self._blobs = blobs
        self._idle_s = idle_s
        self._message_s = message_s
        self._streams: dict[asyncio.Task[None], str] = {}

    async def start(self) -> None:
        """Register the handler; requesters are served from now on."""
        await self._p2p.add_binary_stream_handler(wire.PROTOCOL, self._handle)

    async def stop(self) -> None:
        """End all streams and take no new ones."""
        try:
            await self._p2p.remove_binary_stream_handler(wire.PROTOCOL)
        except Exception:
            _log.debug("p2pd did not take the gateway's handler back", exc_info=True)
        tasks = list(self._streams)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _handle(
        self, info: StreamInfo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        remote = str(info.peer_id)
        stream = _Stream(reader, writer, self._message_s)
        task = asyncio.current_task()
        assert task is not None
        try:
            mine = Counter(self._streams.values())[remote]
            if len(self._streams) >= MAX_STREAMS or mine >= MAX_STREAMS_OF_ONE:
                await stream.refuse(
                    BusyError("this peer serves as many requests as it can; try again in a moment")
                )
                return
            self._streams[task] = remote
            await self._serve(stream)
        except (PeerUnreachableError, ConnectionError, EOFError) as error:
            _log.debug("requester %s left: %s", remote, error)
        except RavnestError as error:
            _log.info("requester %s: %s: %s", remote, type(error).__name__, error)
            await stream.refuse(error)
        except Exception:
            _log.exception("a request of %s failed", remote)
            await stream.refuse(OurFault("this peer failed to answer; its log says why"))
        finally:
            self._streams.pop(task, None)
            writer.close()

    async def _serve(self, stream: _Stream) -> None:
        while (body := await stream.next_request(self._idle_s)) is not None:
            request = wire.decode_request(body)
            if isinstance(request, wire.PutBlob):
                await self._put_blob(stream, request)
            elif isinstance(request, wire.GetBlob):
                await self._get_blob(stream, request)
            else:
                try:
                    reply = await bounded(self._answer(request), ANSWER_S)
                except asyncio.TimeoutError:
                    raise BusyError(f"no answer to {request.op} within {ANSWER_S:.0f} s") from None
                await stream.send(wire.encode_reply(reply))

    async def _answer(self, request: wire.Request) -> dict[str, Any]:
        backend = self._backend
        if isinstance(request, wire.Hello):
            return await backend.hello()
        if isinstance(request, wire.Peers):
            return {"peers": await backend.peers()}
        if isinstance(request, wire.Epoch):
            return await backend.epoch()
        if isinstance(request, wire.Jobs):
            return {"jobs": await backend.jobs()}
        if isinstance(request, wire.Status):
            return await backend.status(JobId(request.job))
        if isinstance(request, wire.Logs):
            job = None if request.job is None else JobId(request.job)
            return {"logs": await backend.logs(job, request.after, request.limit)}
        if isinstance(request, wire.Trace):
            return await backend.trace(JobId(request.job), request.last_s)
        if isinstance(request, wire.Result):
            return await backend.result(JobId(request.job))
        if isinstance(request, wire.Submit):
            return {"job": await backend.submit(request.record)}
        if isinstance(request, wire.Cancel):
            await backend.cancel(request.record)
            return {"ok": True}
        raise FrameFormatError(f"no answer to {request.op}")

    async def _put_blob(self, stream: _Stream, request: wire.PutBlob) -> None:
        blob = BlobHash(request.hash)
        if self._blobs.has(blob):
            await stream.send(wire.encode_reply({"have": True}))
            return
        with await asyncio.to_thread(self._blobs.writer, blob, request.size) as writer:
            await stream.send(wire.encode_reply({"have": False}))
            while writer.offset < writer.size_bytes:
                chunk = await stream.read_message(wire.CHUNK_BYTES)
                if not chunk:
                    raise BlobError(f"an empty chunk of blob {blob}")
                await asyncio.to_thread(writer.write, chunk)
            await asyncio.to_thread(writer.finish)
        await stream.send(wire.encode_reply({"ok": True}))

    async def _get_blob(self, stream: _Stream, request: wire.GetBlob) -> None:
        blob = BlobHash(request.hash)
        if not self._blobs.has(blob):
            try:
                await bounded(self._backend.fetch(blob), ANSWER_S)
            except asyncio.TimeoutError:
                raise BlobError(f"blob {blob} could not be brought here within {ANSWER_S:.0f} s") from None
        with await asyncio.to_thread(_open, self._blobs, blob, request.offset) as file:
            await stream.send(wire.encode_reply({"size": os.fstat(file.fileno()).st_size}))
            while part := await asyncio.to_thread(file.read, _READ_AHEAD_BYTES):
                for start in range(0, len(part), wire.CHUNK_BYTES):
                    await stream.send(wire.frame(part[start : start + wire.CHUNK_BYTES], wire.CHUNK_BYTES))


def _open(blobs: BlobStore, blob: BlobHash, offset: int) -> BinaryIO:
    """The blob's file at `offset`; once open it stays readable, also when the store drops the blob."""
    size = blobs.size(blob)
    if offset > size:
        raise BlobError(f"blob {blob} has {size} bytes; byte {offset} was asked for")
    file = blobs.path(blob).open("rb")
    file.seek(offset)
    return file


class _Stream:
    """Messages over p2pd's reader and writer, each within its deadline."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message_s: float) -> None:
        self._reader = reader
        self._writer = writer
        self._message_s = message_s

    async def next_request(self, idle_s: float) -> bytes | None:
        """Body of the next request; None when the requester has no more, or is idle for too long."""
        try:
            first = await bounded(self._reader.read(1), idle_s)
        except asyncio.TimeoutError:
            return None
        return await self.read_message(wire.MAX_REQUEST_BYTES, first) if first else None

    async def read_message(self, limit: int, start: bytes = b"") -> bytes:
        """One body of at most `limit` bytes; `start` is what was read of its header already."""

        async def read() -> bytes:
            header = start + await self._reader.readexactly(wire.HEADER_BYTES - len(start))
            return await self._reader.readexactly(wire.body_length(header, limit))

        try:
            return await bounded(read(), self._message_s)
        except asyncio.TimeoutError:
            raise PeerUnreachableError(f"no whole message within {self._message_s:.0f} s") from None

    async def send(self, message: bytes) -> None:
        """Send, and wait until the requester has room for more."""
        self._writer.write(message)
        try:
            await bounded(self._writer.drain(), self._message_s)
        except asyncio.TimeoutError:
            raise PeerUnreachableError(f"nothing was taken for {self._message_s:.0f} s") from None

    async def refuse(self, error: RavnestError) -> None:
        """Answer the error, if the requester still listens."""
        try:
            await self.send(wire.encode_reply(wire.reply_of_error(error)))
        except (RavnestError, ConnectionError):
            return
