"""Real workers stand behind the walls before they hear their first command, and say so in their log."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ravnest_p2p.daemon.worker import sandbox_landlock
from ravnest_p2p.daemon.worker.sandbox_syscalls import UnavailableError
from ravnest_p2p.daemon.workers import WorkerProcess

DISK_BYTES = 10**9
BOUND_S = 90


@pytest.fixture
def home() -> Iterator[Path]:
    home = Path(tempfile.mkdtemp(prefix="rn-"))
    (home / "blobs").mkdir()
    yield home
    shutil.rmtree(home)


async def worker_in(home: Path, memory_bytes: int = 10**9) -> WorkerProcess:
    return await WorkerProcess.spawn(
        memory_bytes=memory_bytes,
        disk_bytes=DISK_BYTES,
        threads=2,
        device="cpu",
        microbatch_flops=1e16,
        blobs_folder=home / "blobs",
        job_folder=home / "jobs" / "ours",
        runtime_folder=home / "run",
        control_socket=str(home / "run" / "p2pd.sock"),
        log_path=home / "worker.log",
    )


async def hear(worker: WorkerProcess) -> None:
    async for _ in worker.reports():
        pass


def test_a_worker_is_walled_in_and_its_death_is_logged(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        walls = f"files by Landlock {sandbox_landlock.offered()}; system calls by seccomp"
    except UnavailableError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("OWNERS_TOKEN", "secret")

    async def scenario() -> int:
        worker = await worker_in(home)
        hearing = asyncio.create_task(hear(worker))
        try:
            await worker.wait_idle()
            proc = Path(f"/proc/{worker.pid}")
            status = dict(
                line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line
            )
            assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
            assert int(status["CapPrm"], 16) in (0, 2)
            limits = (proc / "limits").read_text()
            assert f"Max file size             {DISK_BYTES} " in limits
            assert b"secret" not in (proc / "environ").read_bytes()
            assert worker.sockets_folder.is_dir()
            os.kill(worker.pid, signal.SIGSEGV)
            await hearing
        finally:
            hearing.cancel()
            code = await worker.end()
        assert not worker.sockets_folder.exists()
        return code

    assert asyncio.run(asyncio.wait_for(scenario(), BOUND_S)) == -signal.SIGSEGV
    log = (home / "worker.log").read_text()
    assert walls in log
    assert "Fatal Python error: Segmentation fault" in log


def test_a_worker_that_takes_more_than_is_lent_is_killed(home: Path) -> None:
    async def scenario() -> tuple[int, str]:
        worker = await worker_in(home, memory_bytes=50_000_000)
        await hear(worker)
        return await worker.end(), worker.fault

    code, fault = asyncio.run(asyncio.wait_for(scenario(), BOUND_S))
    assert code == -signal.SIGKILL
    assert re.fullmatch(r"the worker took \d+ MB of memory, 50 MB are lent", fault)
