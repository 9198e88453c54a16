"""Every attack on a package is refused by name: quickly, in little memory, and nobody dies."""

from __future__ import annotations

import json
import os
import re
import resource
import time
from pathlib import Path

import pytest

from ravnest_p2p.core.errors import PackageError
from ravnest_p2p.model import Package, Program
from tests.property.attack_base import HONEST
from tests.property.attacks import ATTACKS
from tests.property.attacks_files import honest_files

SECONDS = 0.5
MEMORY_KB = 300 << 10
TIMEOUT_S = 30


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    """What torch imports and registers at the first abstract run is not the attacks' doing."""
    for name, attack in ATTACKS.items():
        if attack.program is not None and name.startswith(("bomb", "work")):
            with pytest.raises(PackageError):
                Program.from_json(attack.program())


def attempt(name: str, folder: Path) -> tuple[str, float, int]:
    """Run one attack; returns what came of it, seconds of computing, and kilobytes of memory.

    "PackageError: …" is how it should end; "accepted" and other errors are faults.
    """
    attack = ATTACKS[name]
    data = attack.program() if attack.program else b""
    files = attack.files(folder) if attack.files else None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    try:
        if files is not None:
            Package.load(*files)
        else:
            Program.from_json(data)
        ending = "accepted"
    except BaseException as error:
        ending = f"{type(error).__name__}: {error}"
    used = time.process_time() - started
    return ending, used, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


def in_child(name: str, folder: Path) -> tuple[str, float, int]:
    """`attempt` in a process of its own, which no attack may kill or hold up."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, json.dumps(attempt(name, folder)).encode()[:4096])
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 0, f"{name}: the process died with {code}"
    ending, used, grown = json.loads(answer)
    return ending, used, grown


def test_the_honest_package_is_taken(tmp_path: Path) -> None:
    package = Package.load(*honest_files(tmp_path))
    assert json.loads(package.program.to_json()) == HONEST


def test_there_are_many_attacks() -> None:
    assert len(ATTACKS) >= 300


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused(name: str, tmp_path: Path) -> None:
    ending, used, grown = in_child(name, tmp_path)
    assert ending.startswith(PackageError.__name__ + ":"), ending
    assert re.search(ATTACKS[name].says, ending), ending
    assert used <= SECONDS
    assert grown <= MEMORY_KB
