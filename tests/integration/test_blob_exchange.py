"""Blobs between real p2pd: whole or not at all, whatever the other side does."""

import asyncio
import os
from pathlib import Path

import pytest

from ravnest_p2p.core.errors import BlobError, PeerUnreachableError
from ravnest_p2p.network.blob_exchange import CHUNK_BYTES, PROTOCOL, BlobExchange
from ravnest_p2p.network.blobs import BlobStore
from ravnest_p2p.network.frames import FrameKind, Limits, pack
from ravnest_p2p.network.streams import Stream, StreamService, open_stream
from tests.integration.peers import id_of, peers, run

MIB = 1 << 20
BUSY_S = 30.0
"""For what takes milliseconds, on a machine that has other things to do."""


def stores(folder: Path, count: int) -> list[BlobStore]:
    return [BlobStore(folder / str(number), 100 * MIB) for number in range(count)]


class Liar:
    """A peer that speaks the protocol and sends what the test says."""

    def __init__(self, size: int, data: bytes, *, end: bool = True) -> None:
        self.size, self.data, self.end = size, data, end
        self.offsets: list[int] = []

    async def serve(self, stream: Stream) -> None:
        request = await stream.receive(Limits())
        offset = request.header["offset"]
        self.offsets.append(offset)
        await stream.send(FrameKind.WELCOME, {"size": self.size})
        for at in range(offset, len(self.data), CHUNK_BYTES):
            await stream.send(FrameKind.CHUNK, pack({}, [self.data[at : at + CHUNK_BYTES]]))
        if self.end:
            await stream.send(FrameKind.END, {})
            await stream.wire.ended()


async def lie(p2p, liar: Liar) -> None:
    await StreamService(p2p, PROTOCOL, liar.serve, 8, 8).start()


def test_fetch_of_large_and_empty_blobs_with_progress(tmp_path: Path):
    async def test() -> None:
        async with peers(2) as (a, b):
            mine, theirs = stores(tmp_path, 2)
            await (serving := BlobExchange(b, theirs)).start()
            fetching = BlobExchange(a, mine)
            data = os.urandom(5 * MIB + 17)
            seen: list[tuple[int, int]] = []
            name = theirs.put_bytes(data)
            path = await fetching.fetch(
                name, [id_of(b)], 10 * MIB, 20, lambda here, total: seen.append((here, total))
            )
            assert path.read_bytes() == data
            assert seen[-1] == (len(data), len(data))
            assert seen == sorted(seen)
            assert fetching.bytes_fetched == serving.bytes_served == len(data)
            assert await fetching.fetch(name, [], 10 * MIB, 20) == path
            empty = theirs.put_bytes(b"")
            assert (await fetching.fetch(empty, [id_of(b)], 10, 20)).read_bytes() == b""
            await serving.close()

    run(test)


def test_callers_at_once_share_one_transfer(tmp_path: Path):
    async def test() -> None:
        async with peers(2) as (a, b):
            mine, theirs = stores(tmp_path, 2)
            await BlobExchange(b, theirs).start()
            fetching = BlobExchange(a, mine)
            name = theirs.put_bytes(os.urandom(2 * MIB))
            await asyncio.gather(*(fetching.fetch(name, [id_of(b)], 3 * MIB, 20) for _ in range(5)))
            assert fetching.bytes_fetched == 2 * MIB
            assert fetching._turns == {}

    run(test)


def test_a_break_is_resumed_at_the_next_peer(tmp_path: Path):
    async def test() -> None:
        async with peers(3) as (a, b, c):
            mine, theirs = stores(tmp_path, 2)
            data = os.urandom(4 * MIB)
            name = theirs.put_bytes(data)
            await lie(b, Liar(len(data), data[: 2 * MIB], end=False))
            serving = BlobExchange(c, theirs)
            await serving.start()
            fetching = BlobExchange(a, mine)
            path = await fetching.fetch(name, [id_of(b), id_of(c)], 5 * MIB, 20)
            assert path.read_bytes() == data
            assert fetching.bytes_fetched == len(data)
            assert serving.bytes_served == 2 * MIB

    run(test)


@pytest.mark.parametrize("size_lie", [0, 1000])
def test_a_poisoned_beginning_or_size_does_not_stop_an_honest_peer(tmp_path: Path, size_lie: int):
    async def test() -> None:
        async with peers(3) as (a, b, c):
            mine, theirs = stores(tmp_path, 2)
            data = os.urandom(2 * MIB)
            name = theirs.put_bytes(data)
            await lie(b, Liar(len(data) + size_lie, os.urandom(MIB), end=False))
            await BlobExchange(c, theirs).start()
            path = await BlobExchange(a, mine).fetch(name, [id_of(b), id_of(c)], 5 * MIB, 20)
            assert path.read_bytes() == data

    run(test)


def test_wrong_bytes_oversize_and_overlong_blobs_are_refused(tmp_path: Path):
    async def test() -> None:
        async with peers(2) as (a, b):
            mine = stores(tmp_path, 1)[0]
            name = "ab" * 32
            liar = Liar(MIB, os.urandom(MIB))
            await lie(b, liar)
            fetching = BlobExchange(a, mine)
            with pytest.raises(BlobError, match="hash"):
                await fetching.fetch(name, [id_of(b)], 5 * MIB, 20)
            assert len(liar.offsets) == 1
            liar.size = 1 << 50
            with pytest.raises(BlobError, match="limit"):
                await fetching.fetch(name, [id_of(b)], 5 * MIB, 20)
            liar.size = MIB // 2 + 5
            with pytest.raises(PeerUnreachableError, match="takes no more"):
                await fetching.fetch(name, [id_of(b)], 5 * MIB, 20)
            liar.size, liar.data = MIB, b"x" * 1000
            with pytest.raises(PeerUnreachableError, match="ended at 1000"):
                await fetching.fetch(name, [id_of(b)], 5 * MIB, 20)
            assert mine.used_bytes == 0
            assert list((tmp_path / "0" / "tmp").iterdir()) == []

    run(test)


def test_a_stalled_peer_is_given_up_and_a_missing_blob_named(tmp_path: Path):
    async def test() -> None:
        async with peers(3) as (a, b, c):
            mine, theirs = stores(tmp_path, 2)
            stalled = asyncio.Event()

            async def stall(stream: Stream) -> None:
                stalled.set()
                await stream.wire.ended()

            await StreamService(b, PROTOCOL, stall, 8, 8).start()
            await BlobExchange(c, theirs).start()
            fetching = BlobExchange(a, mine, stall_s=0.3)
            name = theirs.put_bytes(b"hello")
            path = await fetching.fetch(name, [id_of(b), id_of(c)], 5 * MIB, 20)
            assert stalled.is_set()
            assert path.read_bytes() == b"hello"
            with pytest.raises(BlobError, match="is not here"):
                await fetching.fetch("00" * 32, [id_of(c)], 5 * MIB, 20)
            with pytest.raises(PeerUnreachableError):
                await fetching.fetch("00" * 32, [id_of(b)], 5 * MIB, 0.2)

    run(test)


def test_hostile_requests_are_refused_counted_and_bounded(tmp_path: Path):
    async def test() -> None:
        async with peers(2) as (a, b):
            theirs = stores(tmp_path, 1)[0]
            name = theirs.put_bytes(b"hello")
            serving = BlobExchange(b, theirs, max_per_peer=2)
            await serving.start()
            bodies = [
                {"hash": "../../etc/passwd", "offset": 0},
                {"hash": name, "offset": 6},
                {"hash": name, "offset": -1},
                {"hash": name, "offset": "0"},
                {"hash": 5},
                {},
            ]
            for body in bodies:
                stream = await open_stream(a, id_of(b), PROTOCOL, BUSY_S)
                await stream.send(FrameKind.REQUEST, body)
                answer = await asyncio.wait_for(stream.receive(Limits()), BUSY_S)
                assert answer.kind is FrameKind.REFUSE
                stream.close()
            for garbage in (b"x" * 100, b"RV\x02\x09" + b"\xff" * 40):
                stream = await open_stream(a, id_of(b), PROTOCOL, BUSY_S)
                await stream.wire.write([garbage])
                assert await asyncio.wait_for(stream.wire.ended(), BUSY_S)
                stream.close()
            assert serving.refused["BlobError"] == 3
            assert serving.refused["FrameFormatError"] >= 4
            held = [await open_stream(a, id_of(b), PROTOCOL, BUSY_S) for _ in range(3)]
            # Whichever of them comes last to the other side.
            ends = [asyncio.create_task(stream.wire.ended()) for stream in held]
            ended, _ = await asyncio.wait(ends, timeout=BUSY_S, return_when=asyncio.FIRST_COMPLETED)
            assert len(ended) == 1
            assert ended.pop().result()
            assert serving.refused["busy"] == 1
            for end in ends:
                end.cancel()
            for stream in held:
                stream.close()
            path = await BlobExchange(a, stores(tmp_path / "other", 1)[0]).fetch(name, [id_of(b)], 10, 10)
            assert path.read_bytes() == b"hello"

    run(test)
