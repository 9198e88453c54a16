"""The frame codec: bytes in, frames out, named errors for the rest."""

import struct

import msgpack
import pytest
from crc32c import crc32c

from ravnest_p2p.core.errors import FrameError, FrameFormatError, FrameTooLargeError
from ravnest_p2p.network.frames import (
    HEAD_BYTES,
    FrameDecoder,
    FrameKind,
    Limits,
    encode,
    pack,
    unpack_map,
)

LIMITS = Limits(max_header_bytes=1000, max_payload_bytes=5000)


def joined(*args, **kwargs) -> bytes:
    return b"".join(encode(*args, **kwargs))


def test_a_frame_survives_being_fed_byte_by_byte():
    data = joined(FrameKind.DATA, {"a": 1, "b": [1.5, b"x"]}, [b"hello", bytearray(b"world")], seq=7, ack=3)
    decoder = FrameDecoder(LIMITS)
    frames = [frame for byte in data for frame in decoder.feed(bytes([byte]))]
    assert len(frames) == 1
    frame = frames[0]
    assert (frame.kind, frame.seq, frame.ack) == (FrameKind.DATA, 7, 3)
    assert frame.header == {"a": 1, "b": [1.5, b"x"]}
    assert frame.payload == b"helloworld"
    assert decoder.idle


def test_several_frames_in_one_feed():
    data = joined(FrameKind.PING, {}) + joined(FrameKind.DATA, {"n": 1}, [b"xy"]) + joined(FrameKind.BYE, {})
    kinds = [frame.kind for frame in FrameDecoder(LIMITS).feed(data)]
    assert kinds == [FrameKind.PING, FrameKind.DATA, FrameKind.BYE]


def test_the_payload_is_referenced_not_copied():
    payload = bytearray(100)
    buffers = encode(FrameKind.DATA, {}, [payload])
    payload[0] = 9
    assert bytes(buffers[1])[0] == 9


def test_lengths_are_refused_before_the_bytes_arrive():
    big_payload = joined(FrameKind.DATA, {}, [bytes(5001)])
    big_header = joined(FrameKind.DATA, {"x": "y" * 1001})
    for data in (big_payload, big_header):
        with pytest.raises(FrameTooLargeError):
            FrameDecoder(LIMITS).feed(data[:HEAD_BYTES])


def test_our_own_frame_over_the_limit_is_refused_too():
    with pytest.raises(FrameTooLargeError):
        pack({}, [bytes(5001)], LIMITS)


def test_memory_follows_what_arrived_not_what_was_announced():
    limits = Limits(max_payload_bytes=1 << 40)
    fixed = struct.pack("!2sBBHHQQQII", b"RV", 2, FrameKind.DATA, 0, 0, 0, 0, 1 << 39, 1, 0)
    decoder = FrameDecoder(limits)
    assert (
        decoder.feed(fixed + crc32c(b"\x80", crc32c(fixed)).to_bytes(4, "big") + b"\x80" + bytes(1000)) == []
    )
    assert decoder._part.__alloc__() < 2 << 20
    for _ in range(100):
        decoder.feed(bytes(1 << 18))
    assert decoder._part.__alloc__() < 2 * (100 << 18)


def test_after_an_error_nothing_more_is_taken():
    decoder = FrameDecoder(LIMITS)
    with pytest.raises(FrameFormatError):
        decoder.feed(b"GET / HTTP/1.1\r\nHost: example.org\r\nAccept: */*\r\n")
    with pytest.raises(FrameFormatError):
        decoder.feed(joined(FrameKind.PING, {}))


@pytest.mark.parametrize("at", [0, 2, 3, 5, 7, 10, 20, 30, 34, 38, 42, HEAD_BYTES, -1])
def test_a_changed_byte_never_passes(at: int):
    data = bytearray(joined(FrameKind.DATA, {"a": 1}, [b"payload"], seq=1))
    data[at] ^= 0x40
    decoder = FrameDecoder(Limits(1 << 40, 1 << 60))
    try:
        frames = decoder.feed(data)
    except FrameError:
        return
    assert frames == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x80",
        b"\x01",
        msgpack.packb({1: 2}, use_bin_type=True),
        b"\x81\xa1a\xd6\x05abcd",
        b"\x81\xa1a\xff\xff",
        b"\x81\xa1a\xdd\x7f\xff\xff\xff",
        b"\x81\xa1a" + b"\xdd\x00\x0f\xff\xff" * 10_000,
        b"\x81\xa1a" + b"\x91" * 100_000 + b"\x00",
        b"\x81\xa1a\xa2\xff\xfe",
        b"\x81\xa1a\xc1",
    ],
)
def test_malformed_maps_are_refused(data: bytes):
    with pytest.raises(FrameFormatError):
        unpack_map(data)
