"""Worker processes as ravnestd sees them: a run is stopped, a worker without one is left in peace."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from ravnest_p2p.daemon import workers
from ravnest_p2p.daemon.messages import Idle, Message, StartRun, Stopped, StopRun
from ravnest_p2p.daemon.worker.sandbox_rules import Rooms
from ravnest_p2p.daemon.workers import WorkerProcess


class Process:
    """A process that ends when it is killed."""

    pid = 0

    def __init__(self) -> None:
        self.returncode: int | None = None
        self._ended = asyncio.Event()

    def kill(self) -> None:
        self.returncode = -9
        self._ended.set()

    async def wait(self) -> int | None:
        await self._ended.wait()
        return self.returncode


class Channel:
    """Notes what is sent; says what the test puts in, and `Stopped` to `StopRun` where it is told to obey."""

    def __init__(self, *, obeys: bool) -> None:
        self.sent: list[type[Message]] = []
        self.said: asyncio.Queue[Message | None] = asyncio.Queue()
        self._obeys = obeys

    async def send(self, message: Message) -> None:
        self.sent.append(type(message))
        if isinstance(message, StopRun) and self._obeys:
            self.said.put_nowait(Stopped())

    async def receive(self) -> Message | None:
        return await self.said.get()

    def close(self) -> None:
        self.said.put_nowait(None)


class Doorkeeper:
    async def close(self) -> None:
        pass


def worker(folder: Path, *, obeys: bool) -> tuple[WorkerProcess, Any, Any]:
    process: Any = Process()
    channel: Any = Channel(obeys=obeys)
    doorkeeper: Any = Doorkeeper()
    rooms = Rooms(folder / "blobs", folder / "job", folder / "sockets")
    return WorkerProcess(process, channel, [doorkeeper], rooms), process, channel


async def hear(made: WorkerProcess) -> None:
    async for _ in made.reports():
        pass


def run_of_a_stage() -> StartRun:
    return StartRun.model_construct()


def test_a_worker_that_still_loads_torch_survives_a_new_plan(tmp_path: Path) -> None:
    async def test() -> None:
        made, process, channel = worker(tmp_path, obeys=False)
        assert await asyncio.wait_for(made.stop_run(), 1.0)
        assert (process.returncode, channel.sent) == (None, [])

    asyncio.run(test())


def test_a_run_is_stopped_and_the_worker_kept(tmp_path: Path) -> None:
    async def test() -> None:
        made, process, channel = worker(tmp_path, obeys=True)
        hearing = asyncio.create_task(hear(made))
        channel.said.put_nowait(Idle())
        await made.wait_idle()
        await made.send(run_of_a_stage())
        assert await asyncio.wait_for(made.stop_run(), 1.0)
        assert await asyncio.wait_for(made.stop_run(), 1.0)
        assert (process.returncode, channel.sent) == (None, [StartRun, StopRun])
        hearing.cancel()

    asyncio.run(test())


def test_a_worker_that_does_not_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "STOP_TIMEOUT_S", 0.05)

    async def test() -> None:
        made, process, _ = worker(tmp_path, obeys=False)
        hearing = asyncio.create_task(hear(made))
        await made.send(run_of_a_stage())
        assert not await asyncio.wait_for(made.stop_run(), 5.0)
        assert process.returncode == -9
        hearing.cancel()

    asyncio.run(test())
