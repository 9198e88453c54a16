"""Links between real p2pd: every frame once and in order, whatever is cut; a dead end is noticed in time."""

import asyncio
import random
import time

import pytest

from ravnest_p2p.core.errors import (
    FrameTooLargeError,
    LinkClosedError,
    LinkLostError,
    LinkRefusedError,
    OurFault,
    PeerUnreachableError,
    StaleGenerationError,
)
from ravnest_p2p.core.types import Generation
from ravnest_p2p.network.link_server import LinkServer
from ravnest_p2p.network.links import Link
from ravnest_p2p.network.links_state import LinkLimits
from tests.integration.peers import id_of, peers, run

GENERATION = Generation(3, 1, "aa")
QUICK = LinkLimits(
    window_frames=8, window_bytes=1 << 20, connect_s=1.5, resume_s=1.0, hello_s=0.5, ping_s=0.1, dead_s=0.5
)


async def pair(a, b, limits: LinkLimits | None = None) -> tuple[LinkServer, LinkServer, Link, Link]:
    dialling, accepting = LinkServer(a, GENERATION), LinkServer(b, GENERATION)
    nonce = await accepting.start()
    there = accepting.expect("act", id_of(a), limits)
    here = await dialling.dial(id_of(b), nonce, "act", limits)
    return dialling, accepting, here, there


async def transfer(source: Link, sink: Link, count: int, sizes: list[int]) -> None:
    """Sends `count` frames and checks that they come once, in order, and whole."""

    async def send() -> None:
        for number in range(count):
            await source.send({"n": number}, [number.to_bytes(4, "big"), bytes(sizes[number % len(sizes)])])

    async def receive() -> None:
        for number in range(count):
            frame = await sink.receive()
            assert frame.header == {"n": number}
            assert frame.payload[:4] == number.to_bytes(4, "big")
            assert len(frame.payload) == 4 + sizes[number % len(sizes)]

    await asyncio.gather(send(), receive())


def test_both_directions_at_once_then_a_good_close():
    async def test() -> None:
        async with peers(2) as (a, b):
            dialling, accepting, here, there = await pair(a, b)
            await asyncio.gather(
                transfer(here, there, 300, [0, 100, 300_000]), transfer(there, here, 300, [7, 70_000])
            )
            await here.send({"last": True})
            await here.close()
            assert (await there.receive()).header == {"last": True}
            with pytest.raises(LinkClosedError):
                await there.receive()
            with pytest.raises(LinkClosedError):
                await there.send({})
            with pytest.raises(LinkClosedError):
                await here.send({})
            assert here.queued == there.queued == 0
            assert here.bytes_sent == there.bytes_received > 30_000_000
            assert 0 < here.rtt_s < 0.5
            assert not accepting.refused
            await dialling.close()
            await accepting.close()

    run(test)


@pytest.mark.parametrize("how", ["streams", "connection"])
def test_cuts_lose_repeat_and_reorder_nothing(how: str):
    async def test() -> None:
        async with peers(2) as (a, b):
            dialling, accepting, here, there = await pair(a, b, QUICK)
            chance = random.Random(1)
            done = asyncio.Event()

            async def cut() -> int:
                cuts = 0
                while not done.is_set():
                    await asyncio.wait(
                        [asyncio.ensure_future(done.wait())], timeout=chance.uniform(0.01, 0.15)
                    )
                    session = chance.choice([here, there])._session
                    if session is not None and session.alive:
                        cuts += 1
                        if how == "streams":
                            session._stream.wire.abort()
                        else:
                            await a._client.disconnect(b.peer_id)
                return cuts

            cutting = asyncio.ensure_future(cut())
            await asyncio.gather(
                transfer(here, there, 500, [0, 10, 200_000]), transfer(there, here, 500, [5, 150_000])
            )
            done.set()
            assert await cutting >= 3
            await here.close()
            await dialling.close()
            await accepting.close()

    run(test)


def test_a_slow_user_holds_the_sender_back():
    async def test() -> None:
        async with peers(2) as (a, b):
            _, _, here, there = await pair(a, b, QUICK)
            sent = 0

            async def send() -> None:
                nonlocal sent
                for number in range(100):
                    await here.send({"n": number}, [bytes(1000)])
                    sent += 1

            sending = asyncio.ensure_future(send())
            await asyncio.wait({sending}, timeout=0.5)
            assert QUICK.window_frames <= sent <= 3 * QUICK.window_frames
            assert there.waiting <= 2 * QUICK.window_frames + 1
            assert [(await there.receive()).header["n"] for _ in range(100)] == list(range(100))
            await sending

    run(test)


def test_a_large_frame_passes_and_a_larger_one_is_refused_here():
    async def test() -> None:
        async with peers(2) as (a, b):
            _, _, here, there = await pair(a, b)
            payload = bytearray(64 << 20)
            payload[-1] = 9
            await here.send({}, [payload])
            frame = await there.receive()
            assert len(frame.payload) == 64 << 20
            assert frame.payload[-1] == 9
            with pytest.raises(FrameTooLargeError):
                await here.send({}, [payload, b"x"])
            await transfer(here, there, 3, [1])

    run(test)


def test_small_frames_are_quick_and_large_ones_fast():
    async def test() -> None:
        async with peers(2) as (a, b):
            _, _, here, there = await pair(a, b)

            async def echo() -> None:
                while True:
                    frame = await there.receive()
                    await there.send(frame.header)

            echoing = asyncio.ensure_future(echo())
            times = []
            for number in range(100):
                began_s = time.perf_counter()
                await here.send({"n": number})
                await here.receive()
                times.append(time.perf_counter() - began_s)
            echoing.cancel()
            assert sorted(times)[50] < 0.02
            began_s = time.perf_counter()
            await transfer(here, there, 100, [1 << 20])
            assert 100 / (time.perf_counter() - began_s) > 20, "MiB/s; ten times that where nothing else runs"

    run(test)


def test_a_dialler_may_come_before_it_is_expected():
    async def test() -> None:
        async with peers(2) as (a, b):
            dialling, accepting = LinkServer(a, GENERATION), LinkServer(b, GENERATION)
            nonce = await accepting.start()
            dial = asyncio.ensure_future(dialling.dial(id_of(b), nonce, "late"))
            while not accepting.refused["TryAgainError"]:
                await asyncio.wait({dial}, timeout=0.01)
            there = accepting.expect("late", id_of(a))
            await transfer(await dial, there, 3, [1])
            with pytest.raises(OurFault):
                accepting.expect("late", id_of(a))

    run(test)


def test_wrong_generation_peer_channel_or_nonce_is_refused_by_name():
    async def test() -> None:
        async with peers(3) as (a, b, c):
            accepting = LinkServer(b, GENERATION)
            nonce = await accepting.start()
            there = accepting.expect("act", id_of(a), QUICK)
            newer = LinkServer(a, Generation(3, 1, "bb"))
            with pytest.raises(StaleGenerationError):
                await newer.dial(id_of(b), nonce, "act", QUICK)
            with pytest.raises(LinkRefusedError, match="another peer"):
                await LinkServer(c, GENERATION).dial(id_of(b), nonce, "act", QUICK)
            dialling = LinkServer(a, GENERATION)
            with pytest.raises(PeerUnreachableError, match="not expected yet"):
                await dialling.dial(id_of(b), nonce, "nowhere", QUICK)
            with pytest.raises(PeerUnreachableError, match="protocols not supported"):
                await dialling.dial(id_of(b), "00" * 16, "act", QUICK)
            assert accepting.refused["StaleGenerationError"] == 1
            assert accepting.refused["LinkRefusedError"] == 1
            with pytest.raises(LinkLostError, match="never connected"):
                await there.receive()
            with pytest.raises(LinkLostError):
                await there.send({})

    run(test)


def test_a_second_dialler_cannot_take_a_link_over():
    async def test() -> None:
        async with peers(2) as (a, b):
            _, accepting, here, there = await pair(a, b, QUICK)
            nonce = accepting._service.protocol.rsplit("/", 1)[1]
            with pytest.raises(LinkRefusedError, match="another link"):
                await LinkServer(a, GENERATION).dial(id_of(b), nonce, "act", QUICK)
            await transfer(here, there, 20, [10])

    run(test)


def test_an_end_at_one_side_is_known_at_the_other_at_once():
    async def test() -> None:
        async with peers(2) as (a, b):
            dialling, accepting, here, there = await pair(a, b)
            began_s = time.monotonic()
            there.abort("its peer is gone")
            with pytest.raises(LinkLostError, match="its peer is gone"):
                await there.receive()
            with pytest.raises(LinkLostError, match="has ended here"):
                await here.receive()
            nonce = accepting._service.protocol.rsplit("/", 1)[1]
            there = accepting.expect("other", id_of(a))
            here = await dialling.dial(id_of(b), nonce, "other")
            await transfer(here, there, 1, [1])
            await accepting.close()
            with pytest.raises(LinkClosedError, match="the worker stops"):
                await here.receive()
            assert time.monotonic() - began_s < 4
            await dialling.close()

    run(test)


def test_a_cancelled_dial_and_a_cancelled_receive_leave_nothing_behind():
    async def test() -> None:
        async with peers(2) as (a, b):
            dialling, accepting, here, there = await pair(a, b)
            nonce = accepting._service.protocol.rsplit("/", 1)[1]
            dial = asyncio.ensure_future(dialling.dial(id_of(b), nonce, "nowhere"))
            take = asyncio.ensure_future(there.receive())
            await asyncio.wait({dial, take}, timeout=0.1)
            dial.cancel()
            take.cancel()
            await asyncio.wait({dial, take}, timeout=5)
            assert dial.cancelled()
            assert take.cancelled()
            await transfer(here, there, 5, [1])
            await dialling.close()
            await accepting.close()
            assert not dialling._tasks
            assert not accepting._tasks

    run(test)
