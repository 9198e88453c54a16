"""ravnestd hands a worker connections to p2pd, one by one, and is not held up by one that misbehaves."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ravnest_p2p.daemon.worker.sandbox_door import Door, Doorkeeper, to_p2pd

BOUND_S = 10


@pytest.fixture
def control() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="rn-") as folder:
        yield Path(folder) / "p2pd.sock"


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.readline())
    writer.close()


async def say(connection: socket.socket, line: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    writer.write(line)
    answer = await reader.readline()
    writer.close()
    return answer


def test_each_who_asks_gets_a_connection_of_its_own(control: Path) -> None:
    async def scenario() -> None:
        async with await asyncio.start_unix_server(echo, control):
            keeper = Doorkeeper(to_p2pd(str(control)))
            door = Door(keeper.theirs.detach())
            connections = await asyncio.gather(*(door.open() for _ in range(20)))
            lines = [f"{i}\n".encode() for i in range(20)]
            assert await asyncio.gather(*map(say, connections, lines)) == lines
            await keeper.close()

    asyncio.run(asyncio.wait_for(scenario(), BOUND_S))


def test_p2pd_may_be_gone_and_come_back(control: Path) -> None:
    async def scenario() -> None:
        keeper = Doorkeeper(to_p2pd(str(control)))
        door = Door(keeper.theirs.detach())
        with pytest.raises(ConnectionRefusedError):
            await door.open()
        async with await asyncio.start_unix_server(echo, control):
            assert await say(await door.open(), b"back\n") == b"back\n"
        await keeper.close()
        with pytest.raises(BrokenPipeError):
            await door.open()

    asyncio.run(asyncio.wait_for(scenario(), BOUND_S))


def test_a_worker_that_leaves_its_connections_lying_gets_no_more(control: Path) -> None:
    async def scenario() -> int:
        async with await asyncio.start_unix_server(echo, control):
            keeper = Doorkeeper(to_p2pd(str(control)))
            keeper.theirs.sendall(bytes(10_000))
            await asyncio.wait({keeper._task})
            keeper.theirs.settimeout(BOUND_S)
            answers = 0
            try:
                while keeper.theirs.recv(1):
                    answers += 1
            except ConnectionResetError:
                pass
            await keeper.close()
            return answers

    assert 0 < asyncio.run(asyncio.wait_for(scenario(), BOUND_S)) < 100


def test_the_keeper_leaves_with_the_worker(control: Path) -> None:
    async def scenario() -> None:
        keeper = Doorkeeper(to_p2pd(str(control)))
        keeper.theirs.close()
        await asyncio.wait({keeper._task})
        assert keeper._ours.fileno() == -1
        await keeper.close()

    asyncio.run(asyncio.wait_for(scenario(), BOUND_S))
