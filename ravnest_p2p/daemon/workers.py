"""Worker processes as ravnestd sees them: spawned, spoken to, ended, never left behind.

A worker ends in one of three ways: ravnestd closes its channel, ravnestd kills it because it does not obey
in time or takes more memory than is lent, or the kernel kills it together with ravnestd. However it ends,
`WorkerProcess.reports` ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import psutil

from ravnest_p2p.core.errors import RemoteFault
from ravnest_p2p.core.wording import bytes_text
from ravnest_p2p.daemon import toolchain
from ravnest_p2p.daemon.channel import Channel
from ravnest_p2p.daemon.environment import thread_environment
from ravnest_p2p.daemon.messages import (
    REPORTS,
    Idle,
    LogLine,
    Message,
    StartRun,
    Stopped,
    StopRun,
    WorkerReport,
)
from ravnest_p2p.daemon.reach import HostsOf, Reach, listener
from ravnest_p2p.daemon.worker.sandbox_door import Doorkeeper, to_p2pd
from ravnest_p2p.daemon.worker.sandbox_rules import Rooms, environment
from ravnest_p2p.network.p2pd_waits import bounded

log = logging.getLogger(__name__)

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 3.0
MEMORY_CHECK_S = 1.0
MEMORY_TOLERANCE = 1.1
"""Over what is lent, as followers of a plan allow it: an estimate is none to the last byte."""
_numbers = itertools.count()
"""Of workers' folders: short, since a socket's path may be about 100 characters long."""


class WorkerProcess:
    """One child process; use `spawn`, iterate `reports`, and always `end`.

    Attributes:
        sockets_folder: where its sockets go.
        fault: why ravnestd killed it; empty if it did not, or only because it was slow to obey.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        channel: Channel[WorkerReport],
        doorkeepers: Sequence[Doorkeeper],
        rooms: Rooms,
        reach: Reach | None = None,
    ) -> None:
        self.sockets_folder = rooms.sockets
        self._compiled_folder = rooms.compiled
        self._compiles = False
        self.fault = ""
        self._process = process
        self._channel = channel
        self._doorkeepers = doorkeepers
        self._reach = reach
        self._idle = asyncio.Event()
        self._has_run = False
        self._holding: asyncio.Task[None] | None = None

    @classmethod
    async def spawn(
        cls,
        *,
        memory_bytes: int,
        disk_bytes: int,
        threads: int,
        device: str,
        microbatch_flops: float,
        blobs_folder: Path,
        job_folder: Path,
        runtime_folder: Path,
        control_socket: str,
        log_path: Path,
        compiler: Sequence[Path] = (),
        hosts_of: HostsOf | None = None,
        listen: Sequence[str] = (),
    ) -> WorkerProcess:
        """Start a worker; it reports `Idle` once torch is loaded and its walls stand (`worker.sandbox`).

        Args:
            memory_bytes: kept as to what is resident if the device is the CPU.
            device, microbatch_flops: as of `DaemonConfig`.
            disk_bytes: of each file that it may write.
            blobs_folder, job_folder: what it may read, and what it may write.
            runtime_folder: gets a folder with the worker's sockets.
            control_socket: p2pd's, the only one to which it gets connections.
            compiler: programs that it may start to compile its stage on a CPU (`daemon.toolchain`).
            hosts_of, listen: for direct connections with members of its plan; without them it has none.
        """
        compiler = compiler if device == "cpu" else ()
        rooms = Rooms(blobs_folder, job_folder, runtime_folder / f"w{next(_numbers)}")
        for folder in (rooms.job, rooms.sockets):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.rmtree(rooms.compiled, ignore_errors=True)
        doorkeepers = [Doorkeeper(to_p2pd(control_socket))]
        reach = None
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as stack:
            stack.enter_context(theirs)
            door = stack.enter_context(doorkeepers[0].theirs)
            output = stack.enter_context(log_path.open("ab"))
            inherited = [theirs.fileno(), door.fileno()]
            direct: list[str] = []
            if hosts_of is not None and (own := listener(listen)) is not None:
                reach = Reach(hosts_of)
                doorkeepers.append(Doorkeeper(reach.connect))
                pair = [stack.enter_context(one).fileno() for one in (own, doorkeepers[1].theirs)]
                direct = ["--direct", *map(str, pair)]
                inherited += pair
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "ravnest_p2p.daemon.worker",
                f"--channel={theirs.fileno()}",
                f"--door={door.fileno()}",
                f"--parent={os.getpid()}",
                f"--memory={memory_bytes}",
                f"--disk={disk_bytes}",
                f"--blobs={rooms.blobs}",
                f"--job={rooms.job}",
                f"--sockets={rooms.sockets}",
                f"--threads={threads}",
                f"--device={device}",
                f"--microbatch-flops={microbatch_flops}",
                *direct,
                *(("--compiler", *map(str, compiler)) if compiler else ()),
                pass_fds=inherited,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(thread_environment(threads), rooms, compiler, driving=device != "cpu"),
                start_new_session=bool(compiler),
            )
        worker = cls(process, await Channel.over(ours, REPORTS), doorkeepers, rooms, reach)
        worker._compiles = bool(compiler)
        if device == "cpu":
            worker._holding = asyncio.create_task(worker._hold(memory_bytes))
        return worker

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    async def send(self, command: Message) -> None:
        """Hand over a command; a worker that has just died is noticed by the end of `reports`."""
        if isinstance(command, StartRun):
            self._has_run = True
            if self._reach is not None:
                self._reach.peers = frozenset(command.plan.peers)
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

    async def _hold(self, memory_bytes: int) -> None:
        """Kill the process if it takes more than that; its own limit is higher, and on what it reserves."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            while True:
                taken = process.memory_info().rss
                lent = memory_bytes
                if self._compiles:
                    lent += toolchain.MEMORY_BYTES
                    of_programs, programs = toolchain.resident_bytes(self.pid)
                    taken += of_programs
                    if programs > toolchain.MOST_PROGRAMS:
                        self.fault = f"the worker started {programs} programs"
                        break
                if taken > MEMORY_TOLERANCE * lent:
                    self.fault = f"the worker took {bytes_text(taken)} of memory, {bytes_text(lent)} are lent"
                    break
                await asyncio.sleep(MEMORY_CHECK_S)
            self._process.kill()

    async def wait_idle(self) -> None:
        await bounded(self._idle.wait(), START_TIMEOUT_S)

    async def stop_run(self, round_s: float = 0.0) -> bool:
        """Ask the worker to give up its run; False where it did not within the deadline and was killed.

        One that has no run is left in peace: it may still be loading torch, and would not answer in time.
        `reports` must be iterated meanwhile, or its answer is not seen.

        Args:
            round_s: how long a round of averaging that is under way may still take.
        """
        if not self._has_run:
            return self.alive
        self._idle.clear()
        await self.send(StopRun(round_s=round_s))
        try:
            await bounded(self._idle.wait(), round_s + STOP_TIMEOUT_S)
        except asyncio.TimeoutError:
            await self.end(0)
            return False
        self._has_run = False
        return self.alive

    async def end(self, grace_s: float = STOP_TIMEOUT_S) -> int:
        """End the process, by its channel within `grace_s`, else by SIGKILL; returns the exit code."""
        self._channel.close()
        if self._holding is not None:
            self._holding.cancel()
        try:
            await bounded(self._process.wait(), max(grace_s, 0.001))
        except asyncio.TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        code = await self._process.wait()
        if self._compiles:
            # Once, since its number may be another's later.
            self._compiles = False
            toolchain.end_group(self.pid)
        await asyncio.gather(*(keeper.close() for keeper in self._doorkeepers))
        for folder in (self.sockets_folder, self._compiled_folder):
            shutil.rmtree(folder, ignore_errors=True)
        return code
