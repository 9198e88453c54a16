"""Blobs between peers: ask for one by its hash, take it from whoever has it, believe nobody.

Problem: a blob of gigabytes comes over lines that break, from peers that may lie about its size or its
bytes, and everybody wants it at once. Solution: one stream a transfer; the request names an offset, so
the next peer goes on where the last one broke off; size is checked before a byte is written and the hash
before the blob gets its name; a blob that was put together from several peers and is wrong is fetched
again from one peer at a time.

request {hash, offset} ──▶ ◀── welcome {size} · chunk · chunk … · end or refuse {error, text}
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from hivemind.p2p import P2P

from ravnest_p2p.core.errors import (
    BlobError,
    FrameFormatError,
    PeerUnreachableError,
    RemoteFault,
)
from ravnest_p2p.core.types import BlobHash, PeerId
from ravnest_p2p.network.blobs import BlobStore, BlobWriter, check_hash
from ravnest_p2p.network.frames import FrameKind, Limits, pack
from ravnest_p2p.network.p2pd_waits import bounded
from ravnest_p2p.network.streams import TRANSPORT_ERRORS, Stream, StreamService, open_stream

PROTOCOL = "/ravnest/1/blob"
CHUNK_BYTES = 1 << 18
_LIMITS = Limits(max_header_bytes=1024, max_payload_bytes=CHUNK_BYTES)
_PASSES = 3
_PAUSE_S = 0.2

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Told (bytes here, bytes in all) after every chunk."""


class _NotHereError(BlobError):
    """The peer has no such blob, or not one that we take; asking it again is useless."""


class BlobExchange:
    """Serves a store's blobs and fetches others into it.

    Args:
        max_streams, max_per_peer: transfers served at once; further ones are closed unanswered.
        stall_s: a transfer without a byte for so long is given up.

    Attributes:
        refused: served streams that were refused, by the error's name.
        bytes_served, bytes_fetched: payload bytes.
    """

    def __init__(
        self,
        p2p: P2P,
        store: BlobStore,
        *,
        max_streams: int = 16,
        max_per_peer: int = 4,
        stall_s: float = 15.0,
    ) -> None:
        self.refused: Counter[str] = Counter()
        self.bytes_served = 0
        self.bytes_fetched = 0
        self._p2p = p2p
        self._store = store
        self._stall_s = stall_s
        self._service = StreamService(p2p, PROTOCOL, self._serve, max_streams, max_per_peer, self.refused)
        self._turns: dict[BlobHash, tuple[asyncio.Lock, list[None]]] = {}

    async def start(self) -> None:
        """Serves from now on.

        Raises:
            LocalDaemonError: our p2pd does not take the protocol.
        """
        await self._service.start()

    async def close(self) -> None:
        await self._service.close()

    async def fetch(
        self,
        name: BlobHash,
        peers: Sequence[PeerId],
        max_bytes: int,
        timeout_s: float,
        progress: Progress | None = None,
    ) -> Path:
        """The blob's file, fetched from the first of `peers` that delivers it unless it is here.

        Args:
            max_bytes: a larger blob is refused before a byte of it is taken.
        Raises:
            PeerUnreachableError: nobody delivered it within `timeout_s`; says what each peer did.
            BlobError: no hash, larger than `max_bytes`, or every peer answered and none had the right bytes.
            BlobStoreError: no room here.
        """
        check_hash(name)
        tried: dict[PeerId, str] = {}
        try:
            return await bounded(self._fetch(name, peers, max_bytes, progress, tried), timeout_s)
        except asyncio.TimeoutError:
            raise PeerUnreachableError(
                f"blob {name} was not fetched within {timeout_s:.1f} s: {_summary(tried, peers)}"
            ) from None

    async def _fetch(
        self,
        name: BlobHash,
        peers: Sequence[PeerId],
        max_bytes: int,
        progress: Progress | None,
        tried: dict[PeerId, str],
    ) -> Path:
        async with self._turn(name):
            if self._store.has(name):
                if self._store.size(name) > max_bytes:
                    raise BlobError(f"blob {name} has {self._store.size(name)} bytes, limit {max_bytes}")
                return self._store.path(name)
            transfer = _Transfer(self, name, max_bytes, progress)
            useless: set[PeerId] = set()
            try:
                for turn in range(_PASSES):
                    if turn:
                        await asyncio.sleep(_PAUSE_S * turn)
                    for peer in [peer for peer in peers if peer not in useless]:
                        try:
                            return await transfer.take_from(peer)
                        except _NotHereError as error:
                            useless.add(peer)
                            tried[peer] = str(error)
                        except (RemoteFault, *TRANSPORT_ERRORS) as error:
                            tried[peer] = str(error) or type(error).__name__
            finally:
                transfer.discard()
        kind = BlobError if useless.issuperset(peers) and peers else PeerUnreachableError
        raise kind(f"nobody delivered blob {name}: {_summary(tried, peers)}")

    @contextlib.asynccontextmanager
    async def _turn(self, name: BlobHash) -> AsyncIterator[None]:
        """One transfer of a hash at a time; the next caller finds the blob here, or tries its own peers."""
        lock, users = self._turns.setdefault(name, (asyncio.Lock(), []))
        users.append(None)
        try:
            async with lock:
                yield
        finally:
            users.pop()
            if not users:
                self._turns.pop(name, None)

    async def _serve(self, stream: Stream) -> None:
        request = await _timed(self._stall_s, stream.receive(_LIMITS), stream)
        try:
            name = check_hash(request.header.get("hash"))
            offset = request.header.get("offset")
            size = self._store.size(name)
            if request.kind is not FrameKind.REQUEST or type(offset) is not int or not 0 <= offset <= size:
                raise FrameFormatError("a request names a hash and an offset within the blob")
            file = await asyncio.to_thread(open, self._store.path(name), "rb")
        except RemoteFault as error:
            answer = {"error": type(error).__name__, "text": str(error)[:500]}
            await _timed(self._stall_s, stream.send(FrameKind.REFUSE, answer), stream)
            raise
        with file:
            file.seek(offset)
            await _timed(self._stall_s, stream.send(FrameKind.WELCOME, {"size": size}), stream)
            while part := await asyncio.to_thread(file.read, CHUNK_BYTES):
                await _timed(self._stall_s, stream.send(FrameKind.CHUNK, pack({}, [part])), stream)
                self.bytes_served += len(part)
            await _timed(self._stall_s, stream.send(FrameKind.END, {}), stream)
        with contextlib.suppress(PeerUnreachableError, *TRANSPORT_ERRORS):
            await _timed(self._stall_s, stream.wire.ended(), stream)


class _Transfer:
    """One blob on its way here, over several peers if need be."""

    def __init__(
        self, exchange: BlobExchange, name: BlobHash, max_bytes: int, progress: Progress | None
    ) -> None:
        self._exchange = exchange
        self._name = name
        self._max_bytes = max_bytes
        self._progress = progress
        self._writer: BlobWriter | None = None
        self._sources: set[PeerId] = set()
        self._mixing = True

    def discard(self) -> None:
        """Forgets what came so far."""
        if self._writer is not None:
            self._writer.abort()
        self._writer = None
        self._sources = set()

    async def take_from(self, peer: PeerId) -> Path:
        """Goes on with `peer` where the last one broke off.

        Raises:
            _NotHereError: this peer is of no use for this blob.
            RemoteFault, OSError, EOFError: it broke off; what came is kept for the next.
        """
        if not self._mixing and self._sources != {peer}:
            self.discard()
        exchange = self._exchange
        stream = await open_stream(exchange._p2p, peer, PROTOCOL, exchange._stall_s)
        try:
            size = await self._ask(stream)
            if self._writer is not None and self._writer.size_bytes != size:
                self.discard()
                self._mixing = False
                raise BlobError(f"{peer} says {size} bytes, an earlier peer said otherwise")
            if self._writer is None:
                self._writer = await asyncio.to_thread(exchange._store.writer, self._name, size)
            self._sources.add(peer)
            await self._take_chunks(stream, self._writer)
        finally:
            stream.close()
        try:
            return await asyncio.to_thread(self._writer.finish)
        except BlobError as error:
            mixed, self._mixing = len(self._sources) > 1, False
            self.discard()
            raise error if mixed else _NotHereError(str(error)) from None

    async def _ask(self, stream: Stream) -> int:
        """Sends the request; returns the blob's size."""
        offset = 0 if self._writer is None else self._writer.offset
        stall_s = self._exchange._stall_s
        await _timed(stall_s, stream.send(FrameKind.REQUEST, {"hash": self._name, "offset": offset}), stream)
        answer = await _timed(stall_s, stream.receive(_LIMITS), stream)
        if answer.kind is FrameKind.REFUSE:
            raise _NotHereError(f"{stream.peer} refused: {str(answer.header.get('text'))[:500]}")
        size = answer.header.get("size")
        if answer.kind is not FrameKind.WELCOME or type(size) is not int or size < offset:
            raise _NotHereError(f"{stream.peer} answered a request for a blob by nonsense")
        if size > self._max_bytes:
            raise _NotHereError(f"{stream.peer} offers {size} bytes, limit {self._max_bytes}")
        return size

    async def _take_chunks(self, stream: Stream, writer: BlobWriter) -> None:
        while writer.offset < writer.size_bytes:
            frame = await _timed(self._exchange._stall_s, stream.receive(_LIMITS), stream)
            if frame.kind is not FrameKind.CHUNK or not frame.payload:
                raise BlobError(f"{stream.peer} ended at {writer.offset} of {writer.size_bytes} bytes")
            await asyncio.to_thread(writer.write, frame.payload)
            self._exchange.bytes_fetched += len(frame.payload)
            if self._progress is not None:
                self._progress(writer.offset, writer.size_bytes)


async def _timed(stall_s: float, step: Awaitable[T], stream: Stream) -> T:
    try:
        return await bounded(step, stall_s)
    except asyncio.TimeoutError:
        raise PeerUnreachableError(f"{stream.peer} stalled for {stall_s:.0f} s in a transfer") from None


def _summary(tried: dict[PeerId, str], peers: Sequence[PeerId]) -> str:
    return (
        "; ".join(f"{peer}: {tried.get(peer, 'not asked')}" for peer in peers)
        or "no peer is known to have it"
    )
