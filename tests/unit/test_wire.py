"""A wire: frames over a real connection, read where they belong."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import uvloop

from ravnest_p2p.core.errors import FrameFormatError, FrameTooLargeError, FrameTruncatedError
from ravnest_p2p.network.frames import FrameKind, Limits, encode
from ravnest_p2p.network.wire import WRITE_BYTES, Wire

LIMITS = Limits(max_header_bytes=1000, max_payload_bytes=8 << 20)


def joined(*args, **kwargs) -> bytes:
    return b"".join(encode(*args, **kwargs))


@contextlib.asynccontextmanager
async def wired(leftover: bytes = b"") -> AsyncIterator[tuple[Wire, socket.socket]]:
    here, there = socket.socketpair()
    there.setblocking(False)
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=here)
    wire = Wire.taken_over(transport, leftover)
    try:
        yield wire, there
    finally:
        wire.abort()
        there.close()


def run(test: Callable[[], Awaitable[None]]) -> None:
    uvloop.run(asyncio.wait_for(test(), 20))


def test_frames_come_whole_and_each_by_its_own_limits():
    async def test() -> None:
        async with wired() as (wire, there):
            payload = bytes(range(256)) * 20_000
            data = joined(FrameKind.HELLO, {"a": 1}) + joined(FrameKind.DATA, {}, [payload], seq=3)
            seen: list[int] = []
            sending = asyncio.ensure_future(asyncio.get_running_loop().sock_sendall(there, data))
            hello = await wire.read(Limits(100, 0), seen.append)
            assert (hello.kind, hello.header) == (FrameKind.HELLO, {"a": 1})
            frame = await wire.read(LIMITS, seen.append)
            assert (frame.seq, frame.payload) == (3, payload)
            assert sum(seen) == len(data)
            await sending

    run(test)


def test_what_an_earlier_protocol_had_read_comes_first():
    async def test() -> None:
        data = joined(FrameKind.PING, {}, seq=1) + joined(FrameKind.DATA, {}, [b"payload"], seq=2)
        async with wired(data[:-3]) as (wire, there):
            assert (await wire.read(LIMITS)).seq == 1
            there.send(data[-3:])
            assert (await wire.read(LIMITS)).payload == b"payload"

    run(test)


def test_an_end_is_told_from_a_truncation_and_from_garbage():
    async def test() -> None:
        data = joined(FrameKind.DATA, {"a": 1}, [b"payload"])
        for sent, kind in ((b"", EOFError), (data[:-1], FrameTruncatedError), (b"x" * 50, FrameFormatError)):
            async with wired() as (wire, there):
                there.send(data + sent)
                there.shutdown(socket.SHUT_WR)
                assert (await wire.read(LIMITS)).payload == b"payload"
                for _ in range(2):
                    with pytest.raises(kind):
                        await wire.read(LIMITS)

    run(test)


def test_nothing_is_read_that_nobody_waits_for():
    async def test() -> None:
        async with wired() as (wire, there):
            big = joined(FrameKind.DATA, {}, [bytes(8 << 20)])
            there.send(joined(FrameKind.PING, {}))
            assert (await wire.read(LIMITS)).kind is FrameKind.PING
            with pytest.raises(BlockingIOError):  # noqa: PT012
                for _ in range(1000):
                    there.send(big)
                    await asyncio.sleep(0)
            with pytest.raises(FrameTooLargeError):
                await wire.read(Limits(1000, 1000))

    run(test)


def test_a_writer_waits_for_who_reads_and_learns_of_the_end():
    async def test() -> None:
        async with wired() as (wire, there):
            loop, written = asyncio.get_running_loop(), 0

            async def write() -> None:
                nonlocal written
                while True:
                    await wire.write([bytes(1 << 18)])
                    written += 1 << 18

            writing = asyncio.ensure_future(write())
            await asyncio.wait({writing}, timeout=0.2)
            stuck = written
            assert stuck < 2 * WRITE_BYTES + (1 << 22)
            taken = 0
            while taken <= stuck:
                taken += len(await loop.sock_recv(there, 1 << 20))
            await asyncio.wait({writing}, timeout=0.2)
            assert written > stuck
            there.close()
            with pytest.raises(OSError):  # noqa: PT011
                await writing
            with pytest.raises(OSError):  # noqa: PT011
                await wire.write([b"x"])

    run(test)
