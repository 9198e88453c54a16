"""Probes between real p2pd: plausible numbers, and bounds that hold."""

import asyncio

import pytest

from ravnest_p2p.core.errors import FrameFormatError, PeerUnreachableError
from ravnest_p2p.network.frames import FrameKind, Limits, pack
from ravnest_p2p.network.probes import MAX_BYTES, PROTOCOL, Prober
from ravnest_p2p.network.rpc import Rpc
from ravnest_p2p.network.streams import Stream, StreamService, open_stream
from tests.integration.peers import id_of, peers, run


def test_a_loopback_link_is_fast_in_all_three_ways():
    async def test() -> None:
        async with peers(2) as (a, b):
            await Prober(b, Rpc(b)).start()
            measured = await Prober(a, Rpc(a)).measure(id_of(b))
            assert 0 < measured.rtt_s < 0.2
            assert 50e6 < measured.up_bps < 100e9
            assert 50e6 < measured.down_bps < 100e9

    run(test)


def test_nobody_makes_us_send_more_than_the_grant():
    async def test() -> None:
        async with peers(2) as (a, b):
            serving = Prober(b, Rpc(b), peer_bytes=2 * MAX_BYTES)
            await serving.start()
            asking = Prober(a, Rpc(a))
            await asking.measure(id_of(b))
            with pytest.raises(PeerUnreachableError):
                await asking.measure(id_of(b))
            assert serving.refused["BusyError"] == 1

    run(test)


def test_a_peer_that_sends_too_much_nothing_or_nonsense_is_refused():
    async def test() -> None:
        async with peers(2) as (a, b):
            rpc = Rpc(b)
            await Prober(b, rpc)._rpc.serve("ping", lambda peer, body: asyncio.sleep(0, {}))

            async def flood(stream: Stream) -> None:
                request = await stream.receive(Limits())
                if request.header["direction"] == "down":
                    while True:
                        await stream.send(FrameKind.CHUNK, pack({}, [bytes(1 << 16)]))
                await stream.send(FrameKind.END, {"bytes": 1})
                while not await stream.wire.ended():
                    pass

            await StreamService(b, PROTOCOL, flood, 4, 4).start()
            asking = Prober(a, Rpc(a))
            with pytest.raises(FrameFormatError):
                await asking._measure_one(id_of(b), "down", 0.0, 5.0)
            with pytest.raises(FrameFormatError):
                await asking._measure_one(id_of(b), "up", 0.0, 5.0)

    run(test)


def test_hostile_requests_are_refused_and_counted():
    async def test() -> None:
        async with peers(2) as (a, b):
            serving = Prober(b, Rpc(b))
            await serving.start()
            for kind, body in [(FrameKind.REQUEST, {"direction": "sideways"}), (FrameKind.DATA, {})]:
                stream = await open_stream(a, id_of(b), PROTOCOL, 5)
                await stream.send(kind, body)
                assert await asyncio.wait_for(stream.wire.ended(), 5)
                stream.close()
            stream = await open_stream(a, id_of(b), PROTOCOL, 5)
            await stream.send(FrameKind.REQUEST, {"direction": "up"})
            with pytest.raises((EOFError, OSError)):  # noqa: PT012
                for _ in range(2000):
                    await stream.send(FrameKind.CHUNK, pack({}, [bytes(1 << 16)]))
                await stream.receive(Limits())
            assert serving.refused["FrameFormatError"] == 3

    run(test)
