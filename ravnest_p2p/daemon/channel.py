"""Checked messages between ravnestd and a worker, over a socket pair.

A pipe of length-prefixed msgpack maps. The reader refuses what is oversized or does not fit the message
models, so a worker that a hostile graph has taken over can end its own run and nothing else. When either
process dies, the other reads end-of-file at once: no heartbeat is needed between them.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Generic, TypeVar

import msgpack
from pydantic import TypeAdapter, ValidationError

from ravnest_p2p.core.errors import FrameFormatError, FrameTooLargeError
from ravnest_p2p.daemon.messages import Message

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
LENGTH = struct.Struct(">I")

Incoming = TypeVar("Incoming")


class Channel(Generic[Incoming]):
    """One end of the pair; `incoming` is the adapter of what the other end may say."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, incoming: TypeAdapter[Incoming]
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._incoming = incoming

    @classmethod
    async def over(cls, end: socket.socket, incoming: TypeAdapter[Incoming]) -> Channel[Incoming]:
        reader, writer = await asyncio.open_connection(sock=end)
        return cls(reader, writer, incoming)

    async def send(self, message: Message) -> None:
        """Send one message; raises ConnectionError where the other process is gone."""
        body = msgpack.packb(message.model_dump(mode="json"))
        self._writer.write(LENGTH.pack(len(body)) + body)
        await self._writer.drain()

    async def receive(self) -> Incoming | None:
        """The next message, or None when the other process has gone.

        Raises:
            FrameTooLargeError, FrameFormatError: the other process broke the protocol.
        """
        try:
            (length,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
            if length > MAX_MESSAGE_BYTES:
                raise FrameTooLargeError(f"a message of {length} bytes; the limit is {MAX_MESSAGE_BYTES}")
            body = await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        try:
            return self._incoming.validate_python(msgpack.unpackb(body, strict_map_key=False))
        except (ValueError, ValidationError, msgpack.UnpackException) as error:
            raise FrameFormatError(f"not a message of this channel: {error}") from error

    def close(self) -> None:
        self._writer.close()
