"""Binary frames: the envelope of everything that flows on a stream between two peers.

Problem: tensors of many MiB and small control messages share one byte stream with a peer that may be
broken or hostile. Nothing may be copied without need, and nothing may be allocated for a length that was
only announced. Solution: a fixed head that names every length and is checked first, then a msgpack map,
then raw bytes.

``` 0 magic "RV" 2 version 3 kind 4 flags u16 6 zero u16 8 sequence u64 16 acknowledged u64 24 payload
length u64 32 header length u32 36 payload crc32c 40 crc32c of bytes 0..40 and of the header 44 header
(msgpack map) … payload ``` All integers are big-endian. No I/O happens here: bytes are read straight into the
buffers of `FrameDecoder`, which grow as they fill, so a liar costs little more than twice what it sends.
CRC-32C, since processors have an instruction for it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import msgpack
from crc32c import crc32c

from ravnest_p2p.core.errors import FrameFormatError, FrameTooLargeError

Buffer = bytes | bytearray | memoryview
"""Anything contiguous with the buffer protocol; numpy arrays pass too."""

_MAGIC = b"RV"
_VERSION = 2
_HEAD = struct.Struct("!2sBBHHQQQIII")
HEAD_BYTES = _HEAD.size
_STEP_BYTES = 1 << 20
"""Allocated at once for what was only announced."""

_MAX_ITEMS = 1 << 16


class FrameKind(IntEnum):
    HELLO = 1
    WELCOME = 2
    REFUSE = 3
    DATA = 4
    ACK = 5
    PING = 6
    PONG = 7
    BYE = 8
    REQUEST = 9
    CHUNK = 10
    END = 11
    OFFER = 12


_KINDS = {int(kind): kind for kind in FrameKind}


@dataclass(frozen=True, slots=True)
class Limits:
    """Largest header and payload that a stream accepts, checked before anything is allocated."""

    max_header_bytes: int = 64 << 10
    max_payload_bytes: int = 64 << 20


@dataclass(frozen=True, slots=True)
class Frame:
    """One received frame.

    Attributes:
        seq: number of a DATA frame in its direction; 0 elsewhere.
        ack: cumulative acknowledgement of the other direction.
        header: string keys; values of msgpack types.
        payload: the frame's own buffer; whoever receives it may keep and change it.
    """

    kind: FrameKind
    seq: int
    ack: int
    header: dict[str, Any]
    payload: bytearray

    @property
    def size_bytes(self) -> int:
        return HEAD_BYTES + len(self.payload)


@dataclass(frozen=True, slots=True)
class Packed:
    """Header and payload made ready once, so that re-sending costs only a new head."""

    header: bytes
    buffers: tuple[memoryview, ...]
    payload_bytes: int
    payload_crc: int

    @property
    def size_bytes(self) -> int:
        return HEAD_BYTES + len(self.header) + self.payload_bytes

    def encode(self, kind: FrameKind, seq: int = 0, ack: int = 0) -> list[Buffer]:
        """The frame as buffers to write one after the other; the payload is not copied."""
        fixed = _HEAD.pack(
            *(
                _MAGIC,
                _VERSION,
                kind,
                0,
                0,
                seq,
                ack,
                self.payload_bytes,
                len(self.header),
                self.payload_crc,
                0,
            )
        )[:-4]
        check = crc32c(self.header, crc32c(fixed))
        return [fixed + check.to_bytes(4, "big") + self.header, *self.buffers]


def pack(header: Mapping[str, Any], buffers: Sequence[Any] = (), limits: Limits | None = None) -> Packed:
    """Prepares a frame.

    Args:
        header: msgpack types, string keys.
        buffers: contiguous buffers that together are the payload; referenced, never copied.
        limits: those of the receiver, where known.
    Raises:
        FrameTooLargeError: over `limits`.
    """
    packed_header = pack_map(header)
    views = tuple(memoryview(b).cast("B") for b in buffers if memoryview(b).nbytes)
    crc = 0
    for view in views:
        crc = crc32c(view, crc)
    packed = Packed(packed_header, views, sum(v.nbytes for v in views), crc)
    if limits is not None:
        _check_lengths(len(packed_header), packed.payload_bytes, limits)
    return packed


def encode(
    kind: FrameKind, header: Mapping[str, Any], buffers: Sequence[Any] = (), *, seq: int = 0, ack: int = 0
) -> list[Buffer]:
    """`pack` and `Packed.encode` in one."""
    return pack(header, buffers).encode(kind, seq, ack)


class FrameDecoder:
    """Turns bytes into frames, whatever their cuts; after an error it accepts nothing more.

    Bytes are put where they belong: `room` is memory for the next ones, `filled` says how many came.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._broken = False
        self._restart()

    def _restart(self) -> None:
        self._head: tuple[Any, ...] | None = None
        self._header: dict[str, Any] | None = None
        self._fixed = b""
        self._want(HEAD_BYTES)

    def _want(self, length: int) -> None:
        self._wanted, self._have = length, 0
        self._part = bytearray(min(length, _STEP_BYTES))

    @property
    def idle(self) -> bool:
        """True between two frames."""
        return self._head is None and not self._have

    def room(self) -> memoryview:
        """Where the next bytes go: at least one, and none beyond the end of the frame."""
        return memoryview(self._part)[self._have :]

    def filled(self, count: int) -> Frame | None:
        """So many bytes were put into `room`; returns the frame where they complete one.

        Raises:
            FrameTooLargeError: a length is over the limits; nothing was allocated for it.
            FrameFormatError: anything else that is no frame.
        """
        if self._broken:
            raise FrameFormatError("the stream was given up after an earlier bad frame")
        self._have += count
        try:
            while self._have == self._wanted:
                if (frame := self._advance()) is not None:
                    return frame
        except Exception:
            self._broken = True
            raise
        if self._have == len(self._part):
            # Into new memory: who reads holds the old one.
            grown = bytearray(min(self._wanted, 2 * self._have))
            grown[: self._have] = self._part
            self._part = grown
        return None

    def feed(self, data: Buffer) -> list[Frame]:
        """Takes the next bytes of the stream and returns frames that they complete; errors of `filled`."""
        frames: list[Frame] = []
        view = memoryview(data).cast("B")
        while view.nbytes:
            with self.room() as room:
                take = min(room.nbytes, view.nbytes)
                room[:take] = view[:take]
            view = view[take:]
            if (frame := self.filled(take)) is not None:
                frames.append(frame)
        return frames

    def _advance(self) -> Frame | None:
        """One step of head → header → payload → frame, with the part complete."""
        part = self._part
        if self._head is None:
            self._fixed = bytes(part[:-4])
            self._head = _HEAD.unpack(part)
            magic, version, kind, flags, zero, _, _, payload_bytes, header_bytes, _, _ = self._head
            if magic != _MAGIC or version != _VERSION:
                raise FrameFormatError(f"no frame of version {_VERSION}: begins with {bytes(part[:3]).hex()}")
            if kind not in _KINDS or flags or zero:
                raise FrameFormatError(f"unknown frame kind {kind} or flags {flags:#x}")
            _check_lengths(header_bytes, payload_bytes, self.limits)
            self._want(header_bytes)
            return None
        _, _, kind, _, _, seq, ack, payload_bytes, _, payload_crc, head_crc = self._head
        if self._header is None:
            if crc32c(part, crc32c(self._fixed)) != head_crc:
                raise FrameFormatError("checksum of the frame's head is wrong")
            self._header = unpack_map(part)
            self._want(payload_bytes)
            return None
        if crc32c(part) != payload_crc:
            raise FrameFormatError("checksum of the frame's payload is wrong")
        frame = Frame(_KINDS[kind], seq, ack, self._header, part)
        self._restart()
        return frame


def pack_map(value: Mapping[str, Any]) -> bytes:
    """A map as msgpack bytes.

    Raises:
        TypeError, ValueError: it holds what msgpack has no type for (our bug).
    """
    packed: bytes = msgpack.packb(dict(value), use_bin_type=True)
    return packed


def unpack_map(data: Buffer) -> dict[str, Any]:
    """The map in `data`: string keys, nesting and item counts bounded, no extension types.

    A first pass builds no objects, so that containers that only announce many items are never allocated.

    Raises:
        FrameFormatError: anything else than one such map.
    """
    try:
        scan = msgpack.Unpacker(max_buffer_size=max(len(data), 1))
        scan.feed(data)
        scan.skip()
        value = msgpack.unpackb(
            data, raw=False, max_ext_len=0, max_array_len=_MAX_ITEMS, max_map_len=_MAX_ITEMS
        )
    except (msgpack.UnpackException, ValueError, RecursionError) as error:
        raise FrameFormatError(f"malformed msgpack: {type(error).__name__}") from None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise FrameFormatError("a header must be a map with string keys")
    return value


def _check_lengths(header_bytes: int, payload_bytes: int, limits: Limits) -> None:
    if header_bytes > limits.max_header_bytes:
        raise FrameTooLargeError(f"header of {header_bytes} bytes, limit {limits.max_header_bytes}")
    if payload_bytes > limits.max_payload_bytes:
        raise FrameTooLargeError(f"payload of {payload_bytes} bytes, limit {limits.max_payload_bytes}")
