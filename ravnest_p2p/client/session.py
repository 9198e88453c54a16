"""One stream's conversation with a gateway: requests, replies and blobs, with a deadline on every wait.

The bytes are those of `network.gateway`; this adds reading, writing and files.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from ravnest_p2p.client.transport import Stream
from ravnest_p2p.core.errors import BlobError, FrameFormatError, RemoteFault
from ravnest_p2p.network import gateway
from ravnest_p2p.network.gateway import GetBlob, PutBlob, Request

REPLY_S = 20.0
FETCH_S = 120.0
"""A peer may first have to fetch a blob, or a job's pieces, from others."""
CHUNK_S = 30.0
Advance = Callable[[int], None]
"""Called with the number of bytes that just went over the wire."""


class Session:
    """A gateway stream, for one request at a time."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def request(self, request: Request, timeout_s: float = REPLY_S) -> dict[str, Any]:
        """Ask and await the reply.

        Raises:
            RavnestError: what the peer answered, or `PeerUnreachableError`.
        """
        await self._stream.write(gateway.encode_request(request), CHUNK_S)
        return await self._reply(timeout_s)

    async def put_blob(self, blob: str, path: Path, advance: Advance) -> bool:
        """Upload a file, unless the peer has it; returns whether it was sent."""
        size = (await trio.Path(path).stat()).st_size
        if _boolean(await self.request(PutBlob(hash=blob, size=size)), "have"):
            advance(size)
            return False
        async with await trio.open_file(path, "rb") as file:
            left = size
            while left:
                chunk = await file.read(min(left, gateway.CHUNK_BYTES))
                if not chunk:
                    raise BlobError(f"{path} became shorter while it was uploaded")
                await self._stream.write(gateway.frame(chunk, gateway.CHUNK_BYTES), CHUNK_S)
                left -= len(chunk)
                advance(len(chunk))
        if not _boolean(await self._reply(REPLY_S), "ok"):
            raise BlobError(f"the peer did not keep blob {blob}")
        return True

    async def get_blob(self, blob: str, path: Path, limit: int, advance: Advance) -> None:
        """Download a blob behind what `path` holds of it already. The caller checks the hash.

        Raises:
            BlobError: the blob is over `limit` bytes, or not to be had.
        """
        part = trio.Path(path)
        offset = (await part.stat()).st_size if await part.exists() else 0
        reply = await self.request(GetBlob(hash=blob, offset=offset), FETCH_S)
        size = reply.get("size")
        if not isinstance(size, int) or isinstance(size, bool) or size < offset:
            raise FrameFormatError(f"blob {blob} was announced with size {size!r}")
        if size > limit:
            raise BlobError(f"blob {blob} has {size} bytes, over the limit of {limit}")
        async with await trio.open_file(path, "ab") as file:
            while offset < size:
                header = await self._stream.read(gateway.HEADER_BYTES, CHUNK_S)
                length = gateway.body_length(header, gateway.CHUNK_BYTES)
                if not 0 < length <= size - offset:
                    raise FrameFormatError(f"a chunk of {length} bytes where {size - offset} are left")
                await file.write(await self._stream.read(length, CHUNK_S))
                offset += length
                advance(length)
            await file.flush()
            await trio.to_thread.run_sync(os.fsync, file.fileno())

    async def close(self) -> None:
        await self._stream.close()

    async def _reply(self, timeout_s: float) -> dict[str, Any]:
        header = await self._stream.read(gateway.HEADER_BYTES, timeout_s)
        length = gateway.body_length(header, gateway.MAX_REPLY_BYTES)
        return gateway.decode_reply(await self._stream.read(length, CHUNK_S))


def _boolean(reply: dict[str, Any], name: str) -> bool:
    value = reply.get(name)
    if not isinstance(value, bool):
        raise RemoteFault(f"the peer answered without {name!r}")
    return value
