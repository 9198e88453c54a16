"""Links that go on over a direct TLS connection, and what strangers can do there."""

import asyncio
import contextlib
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from ravnest_p2p.core.errors import FrameFormatError, PeerUnreachableError
from ravnest_p2p.network import direct as direct_module
from ravnest_p2p.network import link_server as link_server_module
from ravnest_p2p.network.bundle import Bundle
from ravnest_p2p.network.direct import Direct, Offer
from ravnest_p2p.network.frames import FrameKind, Limits, pack
from ravnest_p2p.network.link_server import LinkServer
from ravnest_p2p.network.links import Link
from ravnest_p2p.network.links_state import LinkLimits
from tests.integration.peers import id_of, peers, run
from tests.integration.test_links import GENERATION, QUICK, transfer


async def to_loopback(_: str, port: int) -> socket.socket:
    connection = socket.socket()
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    return connection


def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


class Pair:
    def __init__(self, a, b, connect=to_loopback) -> None:
        self.there_direct = Direct(listening(), to_loopback)
        self.dialling = LinkServer(a, GENERATION, Direct(listening(), connect))
        self.accepting = LinkServer(b, GENERATION, self.there_direct)
        self._ids = id_of(a), id_of(b)
        self.here: Link
        self.there: Link

    async def link(self, limits: LinkLimits) -> None:
        nonce = await self.accepting.start()
        self.there = self.accepting.expect("act", self._ids[0], limits)
        self.here = await self.dialling.dial(self._ids[1], nonce, "act", limits)

    def is_direct(self) -> bool:
        session = self.here._session
        return session is not None and session._stream.wire.certificate is not None

    async def until(self, direct: bool) -> None:
        while self.is_direct() is not direct:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def linked(connect=to_loopback, limits: LinkLimits = QUICK) -> AsyncIterator[Pair]:
    async with peers(2) as (a, b):
        pair = Pair(a, b, connect)
        await pair.link(limits)
        yield pair
        await pair.dialling.close()
        await pair.accepting.close()


def test_a_link_moves_on_to_a_direct_connection_and_loses_nothing():
    async def test() -> None:
        async with linked() as pair:
            both = transfer(pair.here, pair.there, 300, [0, 10, 200_000])
            await asyncio.gather(both, transfer(pair.there, pair.here, 300, [5, 150_000]), pair.until(True))

    run(test)


class WhenAsked:
    """Connects when it is told to."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.tried = asyncio.Event()

    async def __call__(self, peer: str, port: int) -> socket.socket:
        self.tried.set()
        await self.asked.wait()
        return await to_loopback(peer, port)


def test_nothing_is_sent_twice_as_a_full_link_moves():
    frame = pack({"n": 0}, [bytes(100_000)])

    async def send(link: Link, moved: asyncio.Event, sent: list[int]) -> None:
        """Until it moved, and for some time more."""
        while not moved.is_set():
            await link.send({"n": 0}, [bytes(100_000)])
            sent[0] += 1
        for _ in range(20):
            await link.send({"n": 0}, [bytes(100_000)])
        sent[0] += 20
        await link.drained()

    async def take(link: Link, ask: asyncio.Event) -> None:
        while True:
            await link.receive()
            if link.next_expected > 30:
                ask.set()

    async def test() -> None:
        connect, moved = WhenAsked(), asyncio.Event()
        async with linked(connect, replace(QUICK, hello_s=4.0)) as pair:
            ends, sent = (pair.here, pair.there), ([0], [0])
            taking = [asyncio.ensure_future(take(end, connect.asked)) for end in ends]
            sending = [asyncio.ensure_future(send(end, moved, n)) for end, n in zip(ends, sent, strict=True)]
            await pair.until(True)
            moved.set()
            await asyncio.gather(*sending)
            for task in taking:
                task.cancel()
            for end, (count,) in zip(ends, sent, strict=True):
                assert count > 50
                # Beside frames: receipts, pings, and an offer.
                assert 0 <= end.bytes_sent - count * frame.size_bytes < frame.size_bytes / 2

    run(test)


def test_a_link_moves_in_time_where_nobody_takes_what_arrived():
    async def test() -> None:
        connect = WhenAsked()
        async with linked(connect) as pair:
            for number in range(6):
                await pair.here.send({"n": number})
            connect.asked.set()
            await asyncio.wait_for(pair.until(True), 2)
            assert [(await pair.there.receive()).header["n"] for _ in range(6)] == list(range(6))
            await transfer(pair.here, pair.there, 20, [5])

    run(test)


def test_a_stream_that_breaks_before_it_is_left_does_not_keep_the_next_one_from_moving():
    async def test() -> None:
        connect = WhenAsked()
        async with linked(connect) as pair:
            await asyncio.gather(transfer(pair.here, pair.there, 20, [5]), connect.tried.wait())
            connect.tried.clear()
            pair.here._session._stream.close()
            await asyncio.wait_for(connect.tried.wait(), 2)
            connect.asked.set()
            await asyncio.wait_for(pair.until(True), 2)
            await transfer(pair.here, pair.there, 20, [5])

    run(test)


def test_it_goes_on_over_libp2p_where_its_ticket_is_not_taken():
    async def test() -> None:
        async def too_late(peer: str, port: int) -> socket.socket:
            pair.accepting._expected["act"].offer = None
            return await to_loopback(peer, port)

        async with linked(too_late) as pair:
            both = transfer(pair.here, pair.there, 300, [5, 150_000])
            await asyncio.gather(both, transfer(pair.there, pair.here, 300, [5, 150_000]))
            while not pair.accepting.refused:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await transfer(pair.here, pair.there, 20, [5])
            assert pair.accepting.refused == {"LinkRefusedError": 1}
            assert not pair.is_direct()
            assert pair.here.end is None

    run(test)


def test_it_goes_back_to_libp2p_where_the_connection_breaks(monkeypatch: pytest.MonkeyPatch):
    async def test() -> None:
        async with linked() as pair:
            await pair.until(True)

            async def refused(*_: object) -> socket.socket:
                raise ConnectionRefusedError

            monkeypatch.setattr(pair.dialling._direct, "_connect", refused)

            async def cut() -> None:
                await asyncio.sleep(0.05)
                pair.here._session._stream.wire.abort()
                await pair.until(False)

            await asyncio.gather(transfer(pair.here, pair.there, 500, [5, 250_000]), cut())
            assert not pair.is_direct()
            assert pair.here.end is None

    run(test)


async def from_afar(peer: str, port: int) -> socket.socket:
    await asyncio.sleep(0.04)
    return await to_loopback(peer, port)


def test_a_long_way_takes_several_connections_and_loses_nothing_where_one_of_them_breaks(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(direct_module, "_round_trip_s", lambda _, connected_in_s: connected_in_s)

    async def test() -> None:
        async with linked(from_afar, replace(QUICK, strands=8)) as pair:
            await pair.until(True)
            bundle = pair.here._session._stream.wire
            assert isinstance(bundle, Bundle)
            assert 4 <= len(bundle._strands) <= 8

            async def cut() -> None:
                await asyncio.sleep(0.05)
                bundle._strands[-1].transport.abort()

            sizes = [0, 10, 200_000]
            there, back = (
                transfer(pair.here, pair.there, 300, sizes),
                transfer(pair.there, pair.here, 300, sizes),
            )
            await asyncio.gather(there, back, cut())
            assert pair.here.end is None

    run(test)


def test_who_makes_a_part_of_the_connections_only_gets_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(link_server_module, "_HELLO_S", 0.5)
    monkeypatch.setattr(direct_module, "_round_trip_s", lambda _, connected_in_s: connected_in_s)

    async def test() -> None:
        async with linked(from_afar, replace(QUICK, strands=4)) as pair:
            await pair.until(True)
            expected = pair.accepting._expected["act"]
            expected.offer = offer = pair.there_direct.offer(4)
            hello = {"channel": "act", "generation": list(GENERATION), "link": bytes(16), "next": 0}
            hello |= {"ticket": offer.ticket, "parts": 3}
            said = [stranger_says(offer.port, hello | {"part": part}) for part in (0, 2, 2)]
            assert await asyncio.wait_for(asyncio.gather(*said), 5) == [b""] * 3
            more = hello | {"part": 0, "parts": 5}
            assert await asyncio.wait_for(stranger_says(offer.port, more), 5) == b""
            assert pair.accepting.refused == {"LinkRefusedError": 2, "PeerUnreachableError": 2}
            assert pair.is_direct()

    run(test)


@pytest.mark.parametrize("how", ["refused", "silent", "somebody else"])
def test_it_stays_with_libp2p_where_none_can_be_made(how: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(direct_module, "_HANDSHAKE_S", 0.3)

    async def test() -> None:
        tried = asyncio.Event()
        silent = listening()
        stranger = Direct(listening(), to_loopback)

        async def met(wire) -> None:
            with contextlib.suppress(EOFError, OSError):
                await wire.read(Limits())
                raise AssertionError("a hello went to a stranger")

        serving = asyncio.ensure_future(stranger.serve(met))

        async def elsewhere(peer: str, port: int) -> socket.socket:
            tried.set()
            if how == "refused":
                raise ConnectionRefusedError
            to = silent if how == "silent" else stranger._listener
            return await to_loopback(peer, to.getsockname()[1])

        async with linked(elsewhere) as pair:
            await asyncio.wait_for(tried.wait(), 5)
            await transfer(pair.here, pair.there, 50, [5, 250_000])
            await asyncio.sleep(0.5)
            assert not pair.is_direct()
            assert pair.here.end is None
        serving.cancel()
        silent.close()

    run(test)


async def stranger_says(port: int, hello: dict) -> bytes:
    """What comes back to a stranger who shakes hands and says this."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    for buffer in pack(hello).encode(FrameKind.HELLO):
        writer.write(buffer)
    with contextlib.suppress(OSError):
        return await reader.read()
    return b""


def test_strangers_get_nothing_and_cost_little(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(direct_module, "_HANDSHAKE_S", 0.5)

    async def test() -> None:
        async with linked() as pair:
            await pair.until(True)
            port = pair.there_direct.offer().port
            hello = {"channel": "act", "generation": [3, 1, "aa"], "link": bytes(16), "next": 0}
            for ticket in ({}, {"ticket": b""}, {"ticket": bytes(32)}, {"ticket": b"x" * 500}, {"ticket": 5}):
                assert await asyncio.wait_for(stranger_says(port, hello | ticket), 5) == b""
            assert pair.accepting.refused == {"LinkRefusedError": 4, "FrameFormatError": 1}
            idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
            garbage = socket.create_connection(("127.0.0.1", port))
            garbage.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
            await asyncio.sleep(0.2)
            assert len(pair.there_direct._greeting) <= 16 + 1
            await transfer(pair.here, pair.there, 100, [5, 100_000])
            assert pair.is_direct()
            for one in (*idle, garbage):
                one.close()

    run(test)


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"port": 0, "fingerprint": bytes(32), "ticket": bytes(32), "strands": 1},
        {"port": 70_000, "fingerprint": bytes(32), "ticket": bytes(32), "strands": 1},
        {"port": True, "fingerprint": bytes(32), "ticket": bytes(32), "strands": 1},
        {"port": 5000, "fingerprint": bytes(31), "ticket": bytes(32), "strands": 1},
        {"port": 5000, "fingerprint": "x" * 32, "ticket": bytes(32), "strands": 1},
        {"port": 5000, "fingerprint": bytes(32), "ticket": bytes(33), "strands": 1},
        {"port": 5000, "fingerprint": bytes(32), "ticket": bytes(32), "strands": 0},
    ],
)
def test_offers_are_checked(header: dict):
    with pytest.raises(FrameFormatError):
        Offer.of(header)


def test_an_offer_counts_once_and_only_for_its_fingerprint():
    async def test() -> None:
        serving, asking = Direct(listening(), to_loopback), Direct(listening(), to_loopback)
        met: list[object] = []

        async def meet(wire) -> None:
            met.append(wire)

        task = asyncio.ensure_future(serving.serve(meet))
        offer = serving.offer()
        (wire,) = await asking.open("peer", offer)
        wire.close()
        with pytest.raises(PeerUnreachableError, match="somebody else"):
            await asking.open("peer", offer._replace(fingerprint=bytes(32)))
        task.cancel()

    run(test)


def test_the_round_trip_is_tcps_own_measure_where_it_tells() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as connection,
    ):
        found_s = direct_module._round_trip_s(connection, 1.0)
    assert 0 < found_s < 0.1 or sys.platform != "linux"
    with socket.socketpair()[0] as no_tcp:
        assert direct_module._round_trip_s(no_tcp, 0.5) == 0.5
