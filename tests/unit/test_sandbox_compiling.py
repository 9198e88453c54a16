"""A worker that may compile does, and neither it nor its programs reach more than before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ravnest_p2p
from ravnest_p2p.daemon.toolchain import toolchain
from ravnest_p2p.daemon.worker.sandbox_rules import environment
from tests.unit.test_sandbox import BY_CALLS, BY_FILES, home, landlock, rooms_of

__all__ = ["home"]

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(not landlock(), reason="needs a linux with Landlock"),
]

PROGRAMS = {"start a program", "become a program"}


def child(home: Path, *programs: Path) -> dict[str, Any]:
    root = str(Path(ravnest_p2p.__path__[0]).parent)
    inherited = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.unit.compile_child",
            f"--home={home}",
            "--compiler",
            *map(str, programs),
        ],
        env=environment(inherited, rooms_of(home), programs),
        cwd=root,
        capture_output=True,
        text=True,
        timeout=360,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(not toolchain(), reason="needs a C++ compiler")
def test_a_worker_compiles_behind_its_walls(home: Path) -> None:
    found = child(home, *toolchain())
    assert found["compiled"] == 1, found["why_not"]
    # In shares of what `model.compiled` allows, 1e-4 of a tensor's size.
    assert found["off"] <= 1.0
    outcomes = found["outcomes"]
    assert {name: outcomes[name] for name in BY_FILES} == dict.fromkeys(BY_FILES, "EACCES")
    calls = [name for name in BY_CALLS if name not in PROGRAMS and name != "fork"]
    assert {name: outcomes[name] for name in calls} == dict.fromkeys(calls, "EPERM")
    assert {outcomes[name] for name in (*PROGRAMS, "start a shell", "start what it wrote")} == {"EACCES"}
    assert {outcomes[name] for name in ("leave the group", "lead a group", "fork into other views")} == {
        "EPERM"
    }


def test_without_the_owners_word_no_worker_compiles(home: Path) -> None:
    found = child(home)
    assert found["compiled"] == 0
    assert "PermissionError" in found["why_not"][0]
    assert found["off"] == 0.0
    assert found["outcomes"]["fork"] == "EPERM"
