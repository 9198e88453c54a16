"""Worker processes as ravnestd sees them: spawned, spoken to, ended, never left behind.

A worker ends in one of three ways: ravnestd closes its channel, ravnestd kills it because it does not obey
in time, or the kernel kills it together with ravnestd. However it ends, `WorkerProcess.reports` ends with
it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from ravnest_p2p.core.errors import RemoteFault
from ravnest_p2p.daemon.channel import Channel
from ravnest_p2p.daemon.environment import thread_environment
from ravnest_p2p.daemon.messages import REPORTS, Idle, LogLine, Message, Stopped, StopRun, WorkerReport
from ravnest_p2p.network.p2pd_waits import bounded

log = logging.getLogger(__name__)

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 3.0


class WorkerProcess:
    """One child process; use `spawn`, iterate `reports`, and always `end`."""

    def __init__(self, process: asyncio.subprocess.Process, channel: Channel[WorkerReport]) -> None:
        self._process = process
        self._channel = channel
        self._idle = asyncio.Event()

    @classmethod
    async def spawn(cls, *, memory_bytes: int, threads: int, log_path: Path) -> WorkerProcess:
        """Start a worker; it reports `Idle` once torch is loaded."""
        ours, theirs = socket.socketpair()
        with theirs, log_path.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "ravnest_p2p.daemon.worker",
                f"--channel={theirs.fileno()}",
                f"--parent={os.getpid()}",
                f"--memory={memory_bytes}",
                f"--threads={threads}",
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=thread_environment(threads),
            )
        return cls(process, await Channel.over(ours, REPORTS))

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    async def send(self, command: Message) -> None:
        """Hand over a command; a worker that has just died is noticed by the end of `reports`."""
        with contextlib.suppress(ConnectionError):
            await self._channel.send(command)

    async def reports(self) -> AsyncIterator[WorkerReport]:
        """Everything the worker says, until it is gone; what breaks the protocol ends it."""
        try:
            while (report := await self._channel.receive()) is not None:
                if isinstance(report, Idle | Stopped):
                    self._idle.set()
                if isinstance(report, LogLine):
                    log.log(logging.getLevelName(report.level), "worker %d: %s", self.pid, report.text)
                else:
                    yield report
        except RemoteFault as error:
            log.warning("worker %d broke the protocol and is ended: %s", self.pid, error)
        await self.end(STOP_TIMEOUT_S)

    async def wait_idle(self) -> None:
        await bounded(self._idle.wait(), START_TIMEOUT_S)

    async def stop_run(self) -> bool:
        """Ask the worker to give up its run; False where it did not within the deadline and was killed.

        `reports` must be iterated meanwhile, or its answer is not seen.
        """
        self._idle.clear()
        await self.send(StopRun())
        try:
            await bounded(self._idle.wait(), STOP_TIMEOUT_S)
        except asyncio.TimeoutError:
            await self.end(0)
            return False
        return self.alive

    async def end(self, grace_s: float = STOP_TIMEOUT_S) -> int:
        """End the process, by its channel within `grace_s`, else by SIGKILL; returns the exit code."""
        self._channel.close()
        try:
            await bounded(self._process.wait(), max(grace_s, 0.001))
        except asyncio.TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        return await self._process.wait()
