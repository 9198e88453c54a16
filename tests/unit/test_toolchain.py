"""The programs that a worker may start are known, counted, bounded in time, and end with it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from ravnest_p2p.daemon import toolchain
from ravnest_p2p.testing.local_swarm import wait_until

CODE = """
import subprocess, sys, time
sleeping = [sys.executable, "-c", "import time; time.sleep(600)"]
children = [subprocess.Popen(sleeping) for _ in range(2)]
print("started", flush=True)
time.sleep(600)
"""


@pytest.fixture
def leader() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", CODE]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        yield process
        toolchain.end_group(process.pid)


def gone(found: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(found, timeout=10)[1]


def over(child: psutil.Process) -> bool:
    try:
        return child.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_children_are_counted_and_end_with_their_leader(leader: subprocess.Popen[str]) -> None:
    found = list(toolchain.children(leader.pid))
    taken, number = toolchain.resident_bytes(leader.pid)
    assert number == len(found) == 2
    assert taken > 2 * 1_000_000
    leader.kill()
    leader.wait()
    toolchain.end_group(leader.pid)
    assert gone(found)
    assert not list(toolchain.children(leader.pid))
    toolchain.end_group(leader.pid)


def test_children_that_take_too_long_are_killed(
    leader: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = list(toolchain.children(leader.pid))
    monkeypatch.setattr(toolchain, "MOST_S", -1.0)
    toolchain.resident_bytes(leader.pid)
    wait_until(lambda: {child.status() for child in found} == {psutil.STATUS_ZOMBIE}, 10, "the end of both")
    assert leader.poll() is None


def test_a_missing_part_is_no_toolchain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    assert toolchain.toolchain() == ()
    monkeypatch.undo()
    monkeypatch.setattr(toolchain, "PARTS", ("no-such-part",))
    assert toolchain.toolchain() == ()
