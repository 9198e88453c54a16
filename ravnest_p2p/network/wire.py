"""A connection as frames: bytes are read where they belong, and nothing is read that nobody asked for.

Problem: asyncio's `StreamReader` copies every byte three times before a frame has it, and reads ahead, so
that what comes next could not be judged by other limits. Solution: a protocol that hands the transport the
very memory of the frame being received, and lets it read only while somebody waits for a frame.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import cast

from ravnest_p2p.core.errors import FrameTruncatedError
from ravnest_p2p.network.frames import Buffer, Frame, FrameDecoder, Limits

WRITE_BYTES = 1 << 20
"""Handed to the transport and not yet taken by the system, at most, before a writer has to wait."""


class Wire(asyncio.BufferedProtocol):
    """One end of a connection: the protocol of its transport, from the start or from `taken_over` on."""

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self._decoder = FrameDecoder(Limits())
        self._leftover = memoryview(b"")
        self._frame: Frame | None = None
        self._error: BaseException | None = None
        self._ended = False
        self._reading: asyncio.Future[None] | None = None
        self._on_bytes: Callable[[int], None] | None = None
        self._may_write = asyncio.Event()
        self._may_write.set()

    @classmethod
    def taken_over(cls, transport: asyncio.BaseTransport, leftover: bytes) -> Wire:
        """Args:
        leftover: bytes that the earlier protocol had read.
        """
        wire = cls()
        wire._leftover = memoryview(leftover)
        wire.connection_made(transport)
        transport.set_protocol(wire)
        return wire

    @property
    def transport(self) -> asyncio.Transport:
        return self._transport

    @property
    def certificate(self) -> bytes | None:
        """What the other end showed, DER; None without TLS."""
        tls = self._transport.get_extra_info("ssl_object")
        found: bytes | None = None if tls is None else tls.getpeercert(binary_form=True)
        return found

    # -- what the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by their class
        self._transport.pause_reading()
        self.write_ahead(WRITE_BYTES)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._decoder.room()

    def buffer_updated(self, nbytes: int) -> None:
        if self._on_bytes is not None:
            self._on_bytes(nbytes)
        self._filled(nbytes)

    def _filled(self, nbytes: int) -> None:
        try:
            self._frame = self._decoder.filled(nbytes)
        except Exception as error:
            self._error = error
        if self._frame is not None or self._error is not None:
            self._listen(False)
            self._wake()

    def eof_received(self) -> bool:
        self._ended = True
        self._wake()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._ended = True
        if error is not None and self._error is None:
            self._error = error
        self._may_write.set()
        self._wake()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    # -- what its user calls

    def write_ahead(self, limit_bytes: int) -> None:
        """How many bytes may wait here to be taken by the system."""
        self._transport.set_write_buffer_limits(high=limit_bytes, low=limit_bytes // 4)

    async def write(self, buffers: Sequence[Buffer]) -> None:
        """Hands them to the transport when it has room.

        Raises:
            OSError: the connection is broken or closed.
        """
        if self._transport.is_closing():
            raise ConnectionResetError("the stream is closed")
        self._transport.writelines(buffers)
        if not self._may_write.is_set():
            await self._may_write.wait()
            if self._transport.is_closing():
                raise ConnectionResetError("the stream was closed meanwhile")

    async def read(self, limits: Limits, on_bytes: Callable[[int], None] | None = None) -> Frame:
        """The next frame.

        Args:
            on_bytes: told the number of bytes at each arrival, so that a long frame counts as a sign of life.
        Raises:
            EOFError: the connection ended between two frames.
            FrameTruncatedError: it ended within one.
            OSError: it broke.
            FrameError: refused; nothing more is read.
        """
        self._decoder.limits, self._on_bytes = limits, on_bytes
        self._use_leftover()
        while self._frame is None:
            if self._error is not None:
                raise self._error
            if self._ended:
                if self._decoder.idle:
                    raise EOFError("the stream ended")
                raise FrameTruncatedError("the stream ended within a frame")
            self._reading = asyncio.get_running_loop().create_future()
            self._listen(True)
            try:
                await self._reading
            finally:
                self._reading = None
                self._listen(False)
        frame, self._frame = self._frame, None
        return frame

    async def ended(self) -> bool:
        """Waits until the other end has closed, or has sent a frame after all; true where it closed."""
        try:
            await self.read(Limits())
        except (EOFError, OSError, FrameTruncatedError):
            return True
        return False

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        """Closes at once; what was written and not yet sent is lost."""
        self._transport.abort()

    def _use_leftover(self) -> None:
        while self._leftover.nbytes and self._frame is None and self._error is None:
            room = self._decoder.room()
            take = min(room.nbytes, self._leftover.nbytes)
            room[:take] = self._leftover[:take]
            room.release()
            self._leftover = self._leftover[take:]
            self.buffer_updated(take)

    def _listen(self, now: bool) -> None:
        if not self._transport.is_closing():
            (self._transport.resume_reading if now else self._transport.pause_reading)()

    def _wake(self) -> None:
        if self._reading is not None and not self._reading.done():
            self._reading.set_result(None)
