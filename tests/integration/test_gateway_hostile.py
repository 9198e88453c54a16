"""Requesters that break the rules, by raw streams from another p2pd: each is answered by name or cut off."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hivemind.p2p.p2p_daemon_bindings.datastructures import PeerID

from ravnest_p2p.core.errors import (
    BlobError,
    BusyError,
    FrameFormatError,
    FrameTooLargeError,
    RavnestError,
    RecordError,
)
from ravnest_p2p.daemon import gateway as daemon_gateway
from ravnest_p2p.network import gateway as wire
from ravnest_p2p.network import p2pd
from tests.integration.gateway_peer import GatewayPeer

pytestmark = pytest.mark.timeout(60)
HASH = "ab" * 32


class Raw:
    """A stream to the victim; all of it runs in the attacker's loop."""

    def __init__(self, attacker: GatewayPeer, victim: GatewayPeer) -> None:
        self._attacker = attacker
        self._victim = victim
        self.open()

    def open(self) -> None:
        async def dial() -> Any:
            p2p = self._attacker.daemon.p2p
            await p2pd.connect(p2p, self._victim.address)
            return await p2p.call_binary_stream_handler(
                PeerID.from_base58(self._victim.peer_id), wire.PROTOCOL
            )

        _, self.reader, self.writer = self._attacker.run(dial())

    def send(self, data: bytes) -> None:
        async def write() -> None:
            self.writer.write(data)
            await self.writer.drain()

        self._attacker.run(write())

    def answer(self, timeout_s: float = 10.0) -> dict[str, Any]:
        """The next reply; the error in it is raised."""

        async def read() -> bytes:
            header = await self.reader.readexactly(wire.HEADER_BYTES)
            return await self.reader.readexactly(wire.body_length(header, wire.MAX_REPLY_BYTES))

        return wire.decode_reply(self._attacker.run(asyncio.wait_for(read(), timeout_s)))

    def ask(self, request: wire.Request) -> dict[str, Any]:
        with contextlib.suppress(ConnectionError):
            # Whoever is refused at the door may find it closed before having asked; the answer lies there.
            self.send(wire.encode_request(request))
        return self.answer()

    def ended(self, timeout_s: float = 10.0) -> bool:
        """Whether the victim closes the stream within the time, sending nothing more."""

        async def read() -> bytes:
            return await self.reader.read(1)

        return self._attacker.run(asyncio.wait_for(read(), timeout_s)) == b""

    def close(self) -> None:
        self._attacker.change(self.writer.close)


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[GatewayPeer, GatewayPeer]]:
    folder: Path = tmp_path_factory.mktemp("hostile")
    with (
        GatewayPeer(folder / "a") as attacker,
        GatewayPeer(folder / "v", message_s=1.0, idle_s=3.0) as victim,
    ):
        yield attacker, victim


@pytest.fixture
def raw(peers: tuple[GatewayPeer, GatewayPeer]) -> Iterator[Raw]:
    stream = Raw(*peers)
    yield stream
    stream.close()
    assert Raw(*peers).ask(wire.Hello())["peer"] == peers[1].peer_id, "the gateway must go on serving"


def refusal(raw: Raw) -> RavnestError:
    with pytest.raises(RavnestError) as raised:
        raw.answer()
    assert raw.ended()
    return raised.value


def test_several_requests_share_a_stream(raw: Raw) -> None:
    assert raw.ask(wire.Hello())["swarm"]
    assert len(raw.ask(wire.Logs(after=2, limit=2))["logs"]) == 2
    assert raw.ask(wire.Peers())["peers"]


def test_a_huge_length_is_refused_before_the_body(raw: Raw) -> None:
    raw.send(b"\xff\xff\xff\xff")
    assert isinstance(refusal(raw), FrameTooLargeError)


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", b"\x93\x01\x02\x03", msgpack.packb({"op": "rm"}), b"\x91" * 5000]
)
def test_nonsense_is_refused(raw: Raw, body: bytes) -> None:
    raw.send(wire.frame(body, wire.MAX_REQUEST_BYTES))
    assert isinstance(refusal(raw), FrameFormatError)


def test_half_a_request_is_not_waited_for(raw: Raw) -> None:
    raw.send(wire.encode_request(wire.Hello())[:-1])
    assert raw.ended()


def test_an_idle_stream_is_ended(raw: Raw) -> None:
    raw.ask(wire.Hello())
    assert raw.ended(10.0)


def test_a_blob_over_the_capacity_is_refused_before_a_byte_of_it(raw: Raw) -> None:
    with pytest.raises(RavnestError, match="no room"):
        raw.ask(wire.PutBlob(hash=HASH, size=1 << 40))


def test_a_blob_with_another_hash_is_not_kept(raw: Raw, peers: tuple[GatewayPeer, GatewayPeer]) -> None:
    used = peers[1].blobs.used_bytes
    assert raw.ask(wire.PutBlob(hash=HASH, size=5)) == {"have": False}
    raw.send(wire.frame(b"wrong", wire.CHUNK_BYTES))
    assert isinstance(refusal(raw), BlobError)
    assert not peers[1].blobs.has(HASH)
    assert peers[1].blobs.used_bytes == used


@pytest.mark.parametrize("chunk", [b"", b"123456"], ids=["empty", "too long"])
def test_a_chunk_that_does_not_fit_is_refused(raw: Raw, chunk: bytes) -> None:
    raw.ask(wire.PutBlob(hash=HASH, size=5))
    raw.send(wire.frame(chunk, wire.CHUNK_BYTES))
    assert isinstance(refusal(raw), BlobError)


def test_a_chunk_over_the_limit_is_refused(raw: Raw) -> None:
    raw.ask(wire.PutBlob(hash=HASH, size=1 << 20))
    raw.send((wire.CHUNK_BYTES + 1).to_bytes(4, "big"))
    assert isinstance(refusal(raw), FrameTooLargeError)


def test_an_upload_that_stalls_gives_its_room_back(raw: Raw, peers: tuple[GatewayPeer, GatewayPeer]) -> None:
    used = peers[1].blobs.used_bytes
    raw.ask(wire.PutBlob(hash=HASH, size=1 << 20))
    raw.send(wire.frame(b"x", wire.CHUNK_BYTES))
    assert raw.ended()
    assert peers[1].blobs.used_bytes == used


def test_an_upload_that_is_cut_gives_its_room_back(raw: Raw, peers: tuple[GatewayPeer, GatewayPeer]) -> None:
    used = peers[1].blobs.used_bytes
    raw.ask(wire.PutBlob(hash=HASH, size=1 << 20))
    raw.close()
    other = Raw(*peers)
    other.ask(wire.Hello())
    assert other.ended(10.0), "long enough for the cut stream to be noticed"
    assert peers[1].blobs.used_bytes == used


def test_a_blob_is_served_from_an_offset(raw: Raw, peers: tuple[GatewayPeer, GatewayPeer]) -> None:
    data = bytes(range(256)) * 2000
    blob = peers[1].blobs.put_bytes(data)
    assert raw.ask(wire.GetBlob(hash=blob, offset=1000)) == {"size": len(data)}
    got = b""
    while len(got) < len(data) - 1000:
        got += chunk(raw)
    assert got == data[1000:]
    assert hashlib.sha256(data[:1000] + got).hexdigest() == blob
    with pytest.raises(BlobError, match="was asked for"):
        raw.ask(wire.GetBlob(hash=blob, offset=len(data) + 1))


def chunk(raw: Raw) -> bytes:
    async def read() -> bytes:
        header = await raw.reader.readexactly(wire.HEADER_BYTES)
        return await raw.reader.readexactly(wire.body_length(header, wire.CHUNK_BYTES))

    return raw._attacker.run(asyncio.wait_for(read(), 10.0))


def test_a_blob_that_nobody_has_is_a_named_error(raw: Raw) -> None:
    with pytest.raises(BlobError, match="is not here"):
        raw.ask(wire.GetBlob(hash=HASH))


def test_who_does_not_read_is_cut_off(raw: Raw, peers: tuple[GatewayPeer, GatewayPeer]) -> None:
    blob = peers[1].blobs.put_bytes(bytes(32 * 1024 * 1024))
    raw.send(wire.encode_request(wire.GetBlob(hash=blob)))
    gateway = peers[1].gateway

    async def all_ended() -> None:
        while gateway._streams:
            await asyncio.wait(list(gateway._streams))

    peers[1].run(asyncio.wait_for(all_ended(), 15.0))


def test_a_forged_record_is_a_named_error(raw: Raw) -> None:
    with pytest.raises(RecordError):
        raw.ask(wire.Submit(record=b"\x90"))


def test_streams_of_one_remote_are_bounded(
    peers: tuple[GatewayPeer, GatewayPeer], monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine opening them takes longer than these peers let a stream idle.
    monkeypatch.setattr(peers[1].gateway, "_idle_s", 60.0)
    streams = []
    try:
        for _ in range(daemon_gateway.MAX_STREAMS_OF_ONE):
            streams.append(Raw(*peers))
            streams[-1].ask(wire.Hello())
        streams.append(Raw(*peers))
        # It is refused at the door: who asks all the same may find it closed, and the answer lost with it.
        with pytest.raises(BusyError):
            streams[-1].answer()
    finally:
        for stream in streams:
            stream.close()
