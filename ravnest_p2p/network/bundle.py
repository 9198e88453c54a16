"""Several connections that are one: bytes cut in pieces, which take the connections in turn.

Problem: on a long way one TCP connection leaves the line idle. It begins with ten segments and takes a round
trip for every doubling; what it loses once, it makes good by a few segments in each round trip, which takes
seconds; and where as much goes the other way, receipts come in heaps behind that traffic, each heap lets a
burst go, and bursts find the queues full. Solution: several connections side by side begin with as many times
more, a loss costs only a part of one's share, and each spreads what it sends over the round trip.

Pieces are numbered, and the receiver puts them in order, so that to all above it is one `Wire`. A connection
has its turn when it has nearly sent what it was given, so that a slow one gets less, and little waits where
nothing can overtake it. All are kept busy: a connection that pauses notices by its clock only that it has
lost something, and everything behind that piece waits. Together they have underway what the line carries and
little more (`underway`), or all would lose something at once.

A receiver holds one piece of each connection, and reads on from it when that piece's turn has come: whoever
skips a number comes to a halt. On every connection numbers rise, so the one that is due is never behind
another that has to wait for it.
"""

from __future__ import annotations

import asyncio
import math
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from ravnest_p2p.core.errors import FrameFormatError
from ravnest_p2p.network.frames import Buffer
from ravnest_p2p.network.underway import LOOK_S, Underway, counted
from ravnest_p2p.network.wire import Wire

MOST_STRANDS = 8
PIECE_BYTES = 1 << 16
UNSENT_BYTES = 1 << 16
"""That wait in the system of one connection, at most, before another is taken."""

LINE_BPS = 100e6
WARM_BYTES = 1 << 17
"""What a connection has underway after three round trips and a little: ten segments, doubled as often."""

_HEAD = struct.Struct("!QI")

_SO_MAX_PACING_RATE = 47
"""Of linux; Python has no name for it."""
_FASTEST = struct.pack("@Q", 1 << 40)
"""Bytes in a second that no line reaches: TCP paces as soon as it is told any limit, by its own measure."""


def strands_for(rtt_s: float, most: int) -> int:
    """So many connections that a usual line is full, over a way of this round trip, soon after they begin."""
    return max(1, min(most, MOST_STRANDS, math.ceil(rtt_s * LINE_BPS / 8 / WARM_BYTES)))


class _Strand(asyncio.BufferedProtocol):
    """One connection of a bundle, and the piece that arrives on it.

    Attributes:
        piece: complete, and not yet taken.
        error: how it broke, or what came that is no piece; nothing more is read.
    """

    def __init__(
        self, transport: asyncio.Transport, heard: Callable[[int], None], changed: Callable[[], None]
    ):
        self.transport = transport
        self.number = -1
        self.piece: bytearray | None = None
        self.error: Exception | None = None
        self.ended = transport.is_closing()
        self.may_write = True
        self._heard = heard
        self._changed = changed
        self._in_head = True
        self._want(_HEAD.size)
        _smooth(transport.get_extra_info("socket"))
        transport.set_write_buffer_limits(high=PIECE_BYTES // 2, low=0)
        transport.set_protocol(self)
        transport.resume_reading()

    def _want(self, size: int) -> None:
        self._part, self._have = bytearray(size), 0

    def take(self) -> bytearray:
        piece, self.piece = self.piece, None
        assert piece is not None, "whoever takes it has seen it"
        if not self.transport.is_closing():
            self.transport.resume_reading()
        return piece

    # -- what the transport calls

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self._part)[self._have :]

    def buffer_updated(self, nbytes: int) -> None:
        self._heard(nbytes)
        self._have += nbytes
        if self._have < len(self._part):
            return
        part = self._part
        if self._in_head:
            number, size = _HEAD.unpack(part)
            if number <= self.number or not 0 < size <= PIECE_BYTES:
                self.error = FrameFormatError(f"piece {number} of {size} bytes came after {self.number}")
                self.transport.abort()
                return
            self.number = number
            self._want(size)
        else:
            self.piece = part
            self.transport.pause_reading()
            self._want(_HEAD.size)
        self._in_head = not self._in_head
        self._changed()

    def eof_received(self) -> bool:
        self.ended = True
        self._changed()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.ended = True
        self.error = self.error or error
        self._changed()

    def pause_writing(self) -> None:
        self.may_write = False

    def resume_writing(self) -> None:
        self.may_write = True
        self._changed()


class Bundle(Wire):
    """Args:
    wires: open, with nothing underway and nobody reading; in any order.
    """

    def __init__(self, wires: Sequence[Wire]) -> None:
        super().__init__()
        self._transport = wires[0].transport  # what is asked of one holds for all
        self._sent, self._taken, self._turn = 0, 0, 0
        self._room = asyncio.Event()
        self._underway, self._looked_s = Underway(), 0.0
        self._strands: list[_Strand] = []
        for wire in wires:
            self._strands.append(_Strand(wire.transport, self._arriving, self._changed))

    # -- what its user calls

    async def write(self, buffers: Sequence[Buffer]) -> None:
        for size, piece in pieces(buffers):
            strand = await self._free()
            strand.transport.writelines([_HEAD.pack(self._sent, size), *piece])
            self._sent += 1
            self._underway.room -= size

    def close(self) -> None:
        for strand in self._strands:
            strand.transport.close()

    def abort(self) -> None:
        for strand in self._strands:
            strand.transport.abort()

    # -- what follows from what the transports call

    def _arriving(self, nbytes: int) -> None:
        if self._on_bytes is not None:
            self._on_bytes(nbytes)

    def buffer_updated(self, nbytes: int) -> None:
        self._filled(nbytes)  # it was counted when it came

    def _changed(self) -> None:
        self._room.set()
        if self._reading is not None:
            self._advance()

    def _listen(self, now: bool) -> None:
        if now:
            self._advance()

    def _advance(self) -> None:
        """Take the pieces whose turn it is until they make a frame."""
        while self._frame is None and self._error is None:
            due = (strand for strand in self._strands if strand.piece and strand.number == self._taken)
            if (strand := next(due, None)) is None:
                break
            self._leftover = memoryview(strand.take())
            self._taken += 1
            self._use_leftover()
        else:
            return
        self._error = next((strand.error for strand in self._strands if strand.error is not None), None)
        self._ended = all(strand.ended for strand in self._strands)
        if self._error is not None or self._ended:
            self._wake()

    async def _free(self) -> _Strand:
        """The next strand with room, once there is one.

        Raises:
            OSError: one of them is broken or closed, and so are all.
        """
        while True:
            if any(strand.ended or strand.transport.is_closing() for strand in self._strands):
                raise ConnectionResetError("a connection of the bundle is closed")
            if not self._has_room():
                await asyncio.sleep(LOOK_S)  # nothing tells of receipts when they come
                continue
            for _ in self._strands:
                self._turn = (self._turn + 1) % len(self._strands)
                if self._strands[self._turn].may_write:
                    return self._strands[self._turn]
            self._room.clear()
            await self._room.wait()

    def _has_room(self) -> bool:
        now_s = time.monotonic()
        if now_s - self._looked_s >= LOOK_S:
            self._looked_s = now_s
            told = [counted(strand.transport.get_extra_info("socket")) for strand in self._strands]
            self._underway.look(now_s, [one for one in told if one is not None])
        return self._underway.room > 0


def _smooth(connection: Any) -> None:
    """Little waits in the system, and what is sent goes out evenly; where the system knows how."""
    with suppress(OSError, AttributeError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    if sys.platform == "linux":
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, _FASTEST)


def pieces(buffers: Sequence[Buffer]) -> Iterator[tuple[int, list[memoryview]]]:
    """Cuts what the buffers hold, one after another, without copying; all but the last piece are full."""
    size = 0
    piece: list[memoryview] = []
    for buffer in buffers:
        rest = memoryview(buffer).cast("B")
        while rest.nbytes:
            part = rest[: PIECE_BYTES - size]
            piece.append(part)
            size, rest = size + part.nbytes, rest[part.nbytes :]
            if size == PIECE_BYTES:
                yield size, piece
                size, piece = 0, []
    if size:
        yield size, piece
