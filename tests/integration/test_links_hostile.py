"""Links against the dead, the silent and the hostile: noticed in time, refused by name, counted, survived."""

import asyncio
import os
import struct
import sys
import time

import pytest
from crc32c import crc32c

from ravnest_p2p.core.errors import (
    FrameFormatError,
    FrameSequenceError,
    FrameTooLargeError,
    LinkLostError,
    PeerUnreachableError,
)
from ravnest_p2p.core.types import Generation
from ravnest_p2p.network import link_server
from ravnest_p2p.network.frames import FrameKind, Limits, pack
from ravnest_p2p.network.link_server import LinkServer
from ravnest_p2p.network.links_hello import Hello, protocol_of, say_hello
from ravnest_p2p.network.links_state import LinkLimits
from ravnest_p2p.network.streams import Stream, StreamService, open_stream
from tests.integration.peers import id_of, peers, run

GENERATION = Generation(3, 1, "aa")
QUICK = LinkLimits(
    frame=Limits(max_payload_bytes=1000),
    connect_s=2.0,
    resume_s=1.0,
    hello_s=0.5,
    ping_s=0.1,
    dead_s=0.5,
)


async def wait_counted(server: LinkServer, name: str, count: int) -> None:
    deadline = time.monotonic() + 5
    while server.refused[name] < count:
        assert time.monotonic() < deadline, f"{name} counted {server.refused[name]} times, not {count}"
        await asyncio.sleep(0.01)


async def raw(a, b, nonce: str) -> Stream:
    return await open_stream(a, id_of(b), protocol_of(nonce), 5)


def test_a_killed_worker_is_noticed_within_the_bound():
    async def test() -> None:
        async with peers(2) as (a, b):
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.integration.link_child"),
                *(str(b._daemon_listen_maddr), id_of(a)),
                stdout=asyncio.subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.getcwd()},
            )
            try:
                nonce = (await asyncio.wait_for(child.stdout.readline(), 30)).decode().strip()
                link = await LinkServer(a, GENERATION).dial(id_of(b), nonce, "act", QUICK)
                await link.send({"n": 1}, [b"x"])
                assert (await link.receive()).header == {"n": 1}
                child.kill()
                began_s = time.monotonic()
                with pytest.raises(LinkLostError, match="without a stream for"):
                    await link.receive()
                with pytest.raises(LinkLostError):
                    await link.send({})
                assert QUICK.resume_s - 0.2 < time.monotonic() - began_s < QUICK.resume_s + 1.5
            finally:
                if child.returncode is None:
                    child.kill()
                await child.wait()

    run(test)


def test_a_silent_end_is_noticed_and_a_stream_without_welcome_is_none():
    async def test() -> None:
        async with peers(2) as (a, b):
            welcomes = 1
            heard = asyncio.Event()

            async def silent(stream: Stream) -> None:
                nonlocal welcomes
                await stream.receive(Limits())
                if welcomes:
                    welcomes -= 1
                    await stream.send(FrameKind.WELCOME, {"next": 0})
                    await stream.send(FrameKind.PING, {}, 1)
                else:
                    heard.set()
                await stream.wire.ended()
                await asyncio.Event().wait()

            await StreamService(b, protocol_of("ab"), silent, 9, 9).start()
            dialling = LinkServer(a, GENERATION)
            link = await dialling.dial(id_of(b), "ab", "act", QUICK)
            began_s = time.monotonic()
            with pytest.raises(LinkLostError, match="unanswered"):
                await link.receive()
            assert heard.is_set()
            assert time.monotonic() - began_s < QUICK.dead_s + QUICK.resume_s + 1.5
            with pytest.raises(PeerUnreachableError, match="unanswered"):
                await dialling.dial(id_of(b), "ab", "other", QUICK)

    run(test)


def test_a_route_that_never_carries_a_frame_is_given_up():
    async def test() -> None:
        async with peers(2) as (a, b):
            streams = 0

            async def small_limit(stream: Stream) -> None:
                nonlocal streams
                streams += 1
                await stream.receive(Limits())
                await stream.send(FrameKind.WELCOME, {"next": 0})
                await stream.send(FrameKind.PING, {}, 1)
                await stream.wire.ended()

            await StreamService(b, protocol_of("ab"), small_limit, 9, 9).start()
            link = await LinkServer(a, GENERATION).dial(id_of(b), "ab", "act", QUICK)
            await link.send({}, [bytes(1000)])
            with pytest.raises(LinkLostError, match="in a row broke before frame 0"):
                await link.receive()
            assert streams >= 10

    run(test)


def test_hostile_hellos_are_refused_and_the_server_lives(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(link_server, "_HELLO_S", 0.5)
    monkeypatch.setattr(link_server, "_MAX_HELLOS", 4)

    async def test() -> None:
        async with peers(2) as (a, b):
            server = LinkServer(b, GENERATION)
            nonce = await server.start()
            there = server.expect("act", id_of(a), QUICK)
            good = {"channel": "act", "generation": [3, 1, "aa"], "link": bytes(16), "next": 0}
            bad = [
                {},
                {**good, "channel": 5},
                {**good, "channel": "x" * 201},
                {**good, "generation": [3, 1]},
                {**good, "generation": [3, 1.0, "aa"]},
                {**good, "generation": [True, 1, "aa"]},
                {**good, "link": bytes(15)},
                {**good, "next": -1},
                {**good, "next": True},
            ]
            for body in bad:
                stream = await raw(a, b, nonce)
                await stream.send(FrameKind.HELLO, body)
                assert await asyncio.wait_for(stream.wire.ended(), 5)
                stream.close()
            await wait_counted(server, "FrameFormatError", len(bad))
            for data in (b"\x13/multistream/1.0.0\n" * 4, b"".join(pack({}).encode(FrameKind.DATA))):
                stream = await raw(a, b, nonce)
                await stream.wire.write([data])
                assert await asyncio.wait_for(stream.wire.ended(), 5)
                stream.close()
            await wait_counted(server, "FrameFormatError", len(bad) + 2)
            stream = await raw(a, b, nonce)
            await stream.send(FrameKind.HELLO, {**good, "pad": bytes(3000)})
            await wait_counted(server, "FrameTooLargeError", 1)
            stream.close()
            stream = await raw(a, b, nonce)
            await stream.send(FrameKind.HELLO, {**good, "next": 7})
            answer = await stream.receive(Limits())
            assert (answer.kind, answer.header["error"]) == (FrameKind.REFUSE, "FrameSequenceError")
            stream.close()
            silent = [await raw(a, b, nonce) for _ in range(6)]
            await wait_counted(server, "BusyError", 2)
            await wait_counted(server, "PeerUnreachableError", 4)
            for stream in silent:
                stream.close()
            link = await LinkServer(a, GENERATION).dial(id_of(b), nonce, "act", QUICK)
            await link.send({"fine": True})
            assert (await there.receive()).header == {"fine": True}

    run(test)


def oversized() -> bytes:
    fixed = struct.pack("!2sBBHHQQQII", b"RV", 2, FrameKind.DATA, 0, 0, 0, 0, 1 << 40, 1, 0)
    return fixed + crc32c(b"\x80", crc32c(fixed)).to_bytes(4, "big") + b"\x80"


BREACHES = [
    ("skips", b"".join(pack({}).encode(FrameKind.DATA, 1, 0)), FrameSequenceError),
    ("wraps", b"".join(pack({}).encode(FrameKind.DATA, 2**64 - 1, 0)), FrameSequenceError),
    ("acknowledges the unsent", b"".join(pack({}).encode(FrameKind.ACK, 0, 1)), FrameSequenceError),
    ("says hello again", b"".join(pack({}).encode(FrameKind.HELLO)), FrameFormatError),
    ("sends another kind", b"".join(pack({}).encode(FrameKind.REQUEST)), FrameFormatError),
    ("announces too much", oversized(), FrameTooLargeError),
    ("sends garbage", os.urandom(100), FrameFormatError),
]


def test_a_neighbour_that_breaks_the_protocol_ends_its_own_link_only():
    async def test() -> None:
        async with peers(2) as (a, b):
            server = LinkServer(b, GENERATION)
            nonce = await server.start()
            good = server.expect("good", id_of(a), QUICK)
            link = await LinkServer(a, GENERATION).dial(id_of(b), nonce, "good", QUICK)
            for breach, data, error in BREACHES:
                before = server.refused[error.__name__]
                bad = server.expect(breach, id_of(a), QUICK)
                stream = await raw(a, b, nonce)
                _, position = await say_hello([stream], Hello(breach, GENERATION, bytes(16), False, 0), 5)
                assert position == 0
                await stream.wire.write([data])
                with pytest.raises(LinkLostError) as caught:
                    await bad.receive()
                assert isinstance(caught.value.__cause__, error)
                stream.close()
                await wait_counted(server, error.__name__, before + 1)
            await link.send({"fine": True})
            assert (await good.receive()).header == {"fine": True}

    run(test)


def test_a_flood_beyond_the_credit_waits_in_the_stream_not_in_memory():
    async def test() -> None:
        async with peers(2) as (a, b):
            server = LinkServer(b, GENERATION)
            nonce = await server.start()
            limits = LinkLimits(frame=Limits(1000, 100_000), window_frames=4, window_bytes=1000)
            link = server.expect("act", id_of(a), limits)
            stream = await raw(a, b, nonce)
            await say_hello([stream], Hello("act", GENERATION, bytes(16), False, 0), 5)

            async def flood() -> None:
                for number in range(1000):
                    await stream.send(FrameKind.DATA, pack({"n": number}, [bytes(50_000)]), number)

            flooding = asyncio.ensure_future(flood())
            await asyncio.wait({flooding}, timeout=0.7)
            assert not flooding.done()
            assert 0 < link.waiting <= 2 * limits.window_frames + 1
            assert [(await link.receive()).header["n"] for _ in range(1000)] == list(range(1000))
            await flooding
            stream.close()

    run(test)
