"""Behind the worker's walls, nothing is reached that a worker does not need, and a worker's work is done."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ravnest_p2p
from ravnest_p2p.daemon.worker import sandbox_landlock
from ravnest_p2p.daemon.worker.sandbox_door import Doorkeeper, to_p2pd
from ravnest_p2p.daemon.worker.sandbox_rules import Rooms, environment
from ravnest_p2p.daemon.worker.sandbox_syscalls import UnavailableError

CHILD = Path(__file__).with_name("sandbox_child.py")
CHILD_S = 90
NOBODY = 65534


def landlock() -> int:
    try:
        return sandbox_landlock.offered()
    except UnavailableError:
        return 0


pytestmark = pytest.mark.skipif(not landlock(), reason="needs a linux with Landlock")

BY_FILES = [
    "read the key",
    "read the key in a thread",
    "read the key through proc",
    "overwrite the key",
    "empty the key",
    "read the state",
    "list the peer's folder",
    "list the user's home",
    "list temporary files",
    "read the users",
    "write beside",
    "write into the store",
    "remove a blob",
    "read another job",
    "lay a trap for whoever reads",
    "replace p2pd",
    "see the parent's variables",
    "see the parent's command",
]
BY_CALLS = [
    "open IPv4",
    "open IPv6",
    "open netlink",
    "open datagrams",
    "pair datagrams",
    "connect",
    "connect to an abstract name",
    "start a program",
    "become a program",
    "fork",
    "signal the parent",
    "signal the group",
    "signal everybody",
    "signal the parent's thread",
    "have the parent signalled",
    "trace the parent",
    "read the parent's memory",
    "raise a limit",
    "limit the parent",
    "change the key's mode",
    "truncate the key",
    "touch the key",
    "watch a folder",
    "take memory aside",
    "share memory with nobody",
    "have memory grow by itself",
    "unshare",
    "set up a ring",
]
NEEDED = [
    "read a blob",
    "write a piece",
    "use a temporary file",
    "start a thread",
    "signal oneself",
    "know one's limits",
    "read about oneself",
    "draw random bytes",
    "import",
]


@pytest.fixture
def home() -> Iterator[Path]:
    """A peer's folder, with a short path, in which lie what a worker needs and what it shall not get."""
    home = Path(tempfile.mkdtemp(prefix="rn-"))
    for folder in ("blobs/ab", "jobs/ours", "jobs/other", "run/w0"):
        (home / folder).mkdir(parents=True)
    for file in ("identity.key", "state.json", "blobs/ab/blob", "jobs/other/piece", "run/p2pd.sock"):
        (home / file).write_text("secret")
    yield home
    shutil.rmtree(home)


def rooms_of(home: Path) -> Rooms:
    return Rooms(home / "blobs", home / "jobs" / "ours", home / "run" / "w0")


def child_environment(home: Path) -> dict[str, str]:
    root = str(Path(ravnest_p2p.__path__[0]).parent)
    return environment({**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "2"}, rooms_of(home))


def plain_child(
    home: Path, *options: str, python: str = sys.executable, user: int | None = None
) -> dict[str, Any]:
    """What the child found without torch."""
    command = [python, str(CHILD), f"--home={home}", "--plain", *options]
    done = subprocess.run(
        command,
        env=child_environment(home),
        user=user,
        capture_output=True,
        text=True,
        timeout=CHILD_S,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def check(found: dict[str, Any]) -> None:
    outcomes = found["outcomes"]
    assert {name: outcomes[name] for name in BY_FILES} == dict.fromkeys(BY_FILES, "EACCES")
    assert {name: outcomes[name] for name in BY_CALLS} == dict.fromkeys(BY_CALLS, "EPERM")
    # Between folders, older kernels know only "not the same file system".
    assert {outcomes["rename the key"], outcomes["link the key"]} <= {"EACCES", "EXDEV"}
    assert outcomes["make a call of the future"] == "ENOSYS"
    assert {name: outcomes[name] for name in NEEDED} == dict.fromkeys(NEEDED, "done")
    assert (found["status"]["NoNewPrivs"], found["status"]["Seccomp"]) == ("1", "2")
    assert int(found["status"]["CapEff"], 16) in (0, 2)


async def child_with_p2pd(home: Path) -> dict[str, Any]:
    """What the child found, a server playing p2pd: it connects to where it is told, and greets."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readline()).decode().strip()
        _, back = await asyncio.open_unix_connection(path)
        back.write(b"greetings")
        await back.drain()
        back.close()
        writer.close()

    control = home / "run" / "p2pd.sock"
    control.unlink()
    async with await asyncio.start_unix_server(greet, control):
        doorkeeper = Doorkeeper(to_p2pd(str(control)))
        with doorkeeper.theirs as door:
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                str(CHILD),
                f"--home={home}",
                f"--door={door.fileno()}",
                pass_fds=[door.fileno()],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=child_environment(home),
                cwd="/",
            )
        try:
            output, errors = await asyncio.wait_for(child.communicate(), CHILD_S)
        finally:
            await doorkeeper.close()
            if child.returncode is None:
                child.kill()
    assert child.returncode == 0, errors.decode()
    found: dict[str, Any] = json.loads(output)
    return found


def test_a_worker_trains_and_talks_and_gets_at_nothing_else(home: Path) -> None:
    found = asyncio.run(child_with_p2pd(home))
    assert found["walls"] == [f"files by Landlock {landlock()}", "system calls by seccomp"]
    assert found["outcomes"]["train"] == "done"
    assert found["outcomes"]["talk with p2pd"] == "done"
    check(found)
    assert (home / "identity.key").read_text() == "secret"
    assert list((home / "jobs" / "ours").glob("*piece*")) == [home / "jobs" / "ours" / "piece"]


def test_without_walls_files_are_reached(home: Path) -> None:
    """Else the refusals would prove nothing."""
    outcomes = plain_child(home, "--open")
    # Its link has been removed by its renaming.
    assert {name for name, outcome in outcomes.items() if outcome != "done"} <= {"link the key"}


def test_a_gpus_driver_does_what_it_needs_and_no_more(home: Path) -> None:
    found = plain_child(home, "--driving")["outcomes"]
    uncapped = ("share memory with nobody", "have memory grow by itself")
    assert {found[name] for name in ("name a thread", *uncapped)} == {"done"}
    assert (found["name the parent's thread"], found["protect oneself from the killer"]) == (
        "EACCES",
        "EACCES",
    )
    others = [name for name in BY_CALLS if name not in uncapped]
    assert {name: found[name] for name in BY_FILES} == dict.fromkeys(BY_FILES, "EACCES")
    assert {name: found[name] for name in others} == dict.fromkeys(others, "EPERM")


@pytest.mark.parametrize("abi", [1, 2, 3, 4, 5, 6])
def test_older_kernels_give_as_much_as_theirs_has(home: Path, abi: int) -> None:
    if abi > landlock():
        pytest.skip(f"this kernel has Landlock {landlock()}")
    found = plain_child(home, f"--abi={abi}")
    assert found["walls"][0] == f"files by Landlock {abi}"
    check(found)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to become another user")
def test_walls_hold_for_ordinary_users_too(home: Path) -> None:
    python = shutil.which("python3", path="/usr/bin:/bin")
    readable = subprocess.run([python or "false", "-c", f"open({str(CHILD)!r})"], user=NOBODY).returncode == 0
    if not readable:
        pytest.skip("no Python and code that anybody may read")
    for path in (home, *home.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    assert python is not None
    found = plain_child(home, python=python, user=NOBODY)
    check(found)
    assert found["status"]["CapEff"] == "0" * 16


@pytest.mark.parametrize(
    ("crash", "words"),
    [
        ("raise", 'raise RuntimeError("the last words of a worker")'),
        ("segfault", "Fatal Python error: Segmentation fault"),
    ],
)
def test_last_words_reach_the_log(home: Path, crash: str, words: str) -> None:
    with tempfile.TemporaryFile() as log:
        command = [
            sys.executable,
            "-X",
            "faulthandler",
            str(CHILD),
            f"--home={home}",
            "--plain",
            f"--crash={crash}",
        ]
        done = subprocess.run(command, env=child_environment(home), stderr=log, timeout=CHILD_S)
        assert done.returncode != 0
        log.seek(0)
        assert words in log.read().decode()
