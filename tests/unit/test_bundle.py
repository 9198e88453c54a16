"""A bundle: several connections that are one wire, whatever comes first on which of them."""

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import uvloop

from ravnest_p2p.core.errors import FrameFormatError, FrameTruncatedError
from ravnest_p2p.network.bundle import MOST_STRANDS, PIECE_BYTES, Bundle, pieces, strands_for
from ravnest_p2p.network.frames import FrameKind, Limits, encode
from ravnest_p2p.network.wire import Wire

LIMITS = Limits(max_header_bytes=1000, max_payload_bytes=8 << 20)


def run(test: Callable[[], Awaitable[None]]) -> None:
    uvloop.run(asyncio.wait_for(test(), 20))


async def wire_of(end: socket.socket) -> Wire:
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=end)
    return Wire.taken_over(transport, b"")


@contextlib.asynccontextmanager
async def two_bundles(strands: int) -> AsyncIterator[tuple[Bundle, Bundle]]:
    pairs = [socket.socketpair() for _ in range(strands)]
    here = Bundle([await wire_of(one) for one, _ in pairs])
    there = Bundle([await wire_of(other) for _, other in reversed(pairs)])
    try:
        yield here, there
    finally:
        here.abort()
        there.abort()


@contextlib.asynccontextmanager
async def bundle_and_sockets(strands: int) -> AsyncIterator[tuple[Bundle, list[socket.socket]]]:
    pairs = [socket.socketpair() for _ in range(strands)]
    bundle = Bundle([await wire_of(one) for one, _ in pairs])
    try:
        yield bundle, [other for _, other in pairs]
    finally:
        bundle.abort()
        for _, other in pairs:
            other.close()


def piece(number: int, data: bytes) -> bytes:
    return struct.pack("!QI", number, len(data)) + data


def frame(seq: int, payload: bytes) -> bytes:
    return b"".join(encode(FrameKind.DATA, {}, [payload], seq=seq))


def test_frames_of_all_sizes_come_whole_and_in_order_both_ways():
    sizes = [0, 1, PIECE_BYTES - 1, PIECE_BYTES, 3 * PIECE_BYTES + 7, 2_000_000, 5] * 3
    draw = random.Random(1)
    payloads = [draw.randbytes(size) for size in sizes]

    async def send(bundle: Bundle) -> None:
        for seq, payload in enumerate(payloads):
            await bundle.write(encode(FrameKind.DATA, {"n": seq}, [payload], seq=seq))

    async def receive(bundle: Bundle) -> None:
        for seq, payload in enumerate(payloads):
            got = await bundle.read(LIMITS)
            assert (got.seq, got.header, got.payload) == (seq, {"n": seq}, payload)

    async def test() -> None:
        async with two_bundles(5) as (here, there):
            await asyncio.gather(send(here), send(there), receive(here), receive(there))

    run(test)


def test_a_piece_that_is_early_waits_for_its_turn():
    async def test() -> None:
        async with bundle_and_sockets(2) as (bundle, (first, second)):
            data, seen = frame(4, bytes(100)), list[int]()
            reading = asyncio.ensure_future(bundle.read(LIMITS, seen.append))
            await asyncio.sleep(0)
            second.sendall(piece(1, data[50:]))
            await asyncio.sleep(0.05)
            assert not reading.done()
            first.sendall(piece(0, data[:50]))
            assert (await reading).seq == 4
            # Each byte is a sign of life when it comes, that of a piece which has to wait too.
            assert sum(seen) == len(data) + 2 * 12

    run(test)


def test_two_frames_in_a_piece_are_taken_one_by_one():
    async def test() -> None:
        async with bundle_and_sockets(2) as (bundle, (first, _)):
            first.sendall(piece(0, frame(1, b"a") + frame(2, b"b")))
            assert [(await bundle.read(LIMITS)).seq for _ in range(2)] == [1, 2]

    run(test)


def test_nobody_makes_us_hold_more_than_a_piece_of_each_connection():
    async def test() -> None:
        async with bundle_and_sockets(2) as (bundle, (first, second)):
            reading = asyncio.ensure_future(bundle.read(LIMITS))
            for end in (first, second):
                end.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    for number in range(1, 1000):
                        end.send(piece(number, bytes(PIECE_BYTES)))
            await asyncio.sleep(0.2)
            assert [len(strand.piece or b"") for strand in bundle._strands] == [PIECE_BYTES] * 2
            assert all(strand.number == 1 for strand in bundle._strands)
            assert not reading.done()
            reading.cancel()

    run(test)


@pytest.mark.parametrize(
    "bad",
    [
        struct.pack("!QI", 0, 0),
        struct.pack("!QI", 0, PIECE_BYTES + 1),
        piece(0, frame(0, bytes(100))[:50]) + piece(0, frame(0, bytes(100))[50:]),
    ],
)
def test_what_is_no_piece_ends_it(bad: bytes):
    async def test() -> None:
        async with bundle_and_sockets(2) as (bundle, (first, _)):
            first.sendall(bad)
            with pytest.raises(FrameFormatError, match=r"of \d+ bytes came after"):
                await bundle.read(LIMITS)

    run(test)


def test_what_came_is_read_before_the_end():
    async def test() -> None:
        async with two_bundles(3) as (here, there):
            await here.write(encode(FrameKind.BYE, {"text": "closed"}))
            here.close()
            assert (await there.read(LIMITS)).kind is FrameKind.BYE
            with pytest.raises(EOFError):
                await there.read(LIMITS)

    run(test)


def test_it_ends_where_one_connection_breaks():
    async def test() -> None:
        async with two_bundles(3) as (here, there):
            await here.write(encode(FrameKind.DATA, {}, [bytes(1000)]))
            assert (await there.read(LIMITS)).size_bytes > 1000
            here._strands[1].transport.abort()
            await asyncio.sleep(0.05)
            with pytest.raises(ConnectionResetError):
                await here.write(encode(FrameKind.DATA, {}, [bytes(10 * PIECE_BYTES)]))
            here.abort()
            with pytest.raises((EOFError, FrameTruncatedError, OSError)):
                await there.read(LIMITS)

    run(test)


def test_a_slow_connection_gets_less():
    async def test() -> None:
        async with bundle_and_sockets(2) as (bundle, (quick, _)):
            loop, got = asyncio.get_running_loop(), 0
            quick.setblocking(False)
            writing = asyncio.ensure_future(bundle.write([bytes(100 * PIECE_BYTES)]))
            while not writing.done():
                with contextlib.suppress(asyncio.TimeoutError):
                    got += len(await asyncio.wait_for(loop.sock_recv(quick, 1 << 20), 0.2))
            assert got > 80 * PIECE_BYTES

    run(test)


def test_bytes_are_cut_without_being_copied_or_lost():
    buffers = [b"head", bytes(PIECE_BYTES - 4), b"", bytearray(b"x" * (PIECE_BYTES + 1))]
    cut = list(pieces(buffers))
    assert [size for size, _ in cut] == [PIECE_BYTES, PIECE_BYTES, 1]
    assert b"".join(bytes(part) for _, parts in cut for part in parts) == b"".join(buffers)
    assert cut[2][1][0].obj is buffers[3]


def test_the_number_of_connections_follows_from_the_round_trip():
    assert [strands_for(rtt_s, 8) for rtt_s in (0.0, 0.001, 0.01, 0.02, 0.04, 0.08, 1.0)] == [
        *(1, 1, 1, 2, 4, 8, MOST_STRANDS)
    ]
    assert strands_for(0.08, 3) == 3
