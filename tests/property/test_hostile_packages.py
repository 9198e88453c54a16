"""Every attack on a package is refused by name: quickly, in little memory, and nobody dies."""

from __future__ import annotations

import gc
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
from tests.property.attacks_evaluation import HONEST_EVALUATION, files_with
from tests.property.attacks_files import honest_files

SECONDS = 0.5
MEMORY_KB = 300 << 10
TOGETHER = 16
AGAIN = 2


@pytest.fixture(scope="module")
def _warm() -> None:
    """What torch imports and registers at the first abstract run is not the attacks' doing."""
    for name, attack in ATTACKS.items():
        if attack.program is not None and name.startswith(("bomb", "work")):
            with pytest.raises(PackageError):
                Program.from_json(attack.program())


Outcome = tuple[str, float, int]
"""How it ended, seconds of computing, and the process's growth in kilobytes since its first attack."""


def attempt(name: str, folder: Path, before_kb: int) -> Outcome:
    """Run one attack. "PackageError: …" is how it should end; "accepted" and other errors are faults."""
    attack = ATTACKS[name]
    data = attack.program() if attack.program else b""
    files = attack.files(folder) if attack.files else None
    started = time.process_time()
    try:
        if files is not None:
            Package.from_files(*files)
        else:
            Program.from_json(data)
        ending = "accepted"
    except BaseException as error:
        ending = f"{type(error).__name__}: {error}"[:1000]
    used = time.process_time() - started
    return ending, used, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb


def in_child(names: list[str], folder: Path) -> dict[str, Outcome]:
    """Attempts in a process of their own, up to the first that kills it."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        gc.freeze()  # else a collection during an attack visits, and so copies, all that other tests left
        before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number, name in enumerate(names):
            place = folder / str(number)
            place.mkdir()
            os.write(writing, json.dumps(attempt(name, place, before_kb)).encode() + b"\n")
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        outcomes = {name: tuple(json.loads(line)) for name, line in zip(names, pipe, strict=False)}
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if len(outcomes) < len(names):
        outcomes[names[len(outcomes)]] = (f"the process died with {code}", 0.0, 0)
    return outcomes


def quickest(name: str, folder: Path, first: Outcome) -> Outcome:
    """The attack again where it took too long: on a busy machine even a process's own seconds swell."""
    tries = [first]
    for number in range(AGAIN):
        if min(used for _, used, _ in tries) <= SECONDS:
            break
        place = folder / f"again-{number}"
        place.mkdir()
        tries.append(in_child([name], place)[name])
    return min(tries, key=lambda outcome: outcome[1])


@pytest.fixture(scope="module")
def outcomes(_warm: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Of every attack; a few share a process, and one that kills it does so for itself alone."""
    found: dict[str, Outcome] = {}
    while len(found) < len(ATTACKS):
        waiting = [name for name in ATTACKS if name not in found]
        found |= in_child(waiting[:TOGETHER], tmp_path_factory.mktemp("attacks"))
    return {name: quickest(name, tmp_path_factory.mktemp("slow"), it) for name, it in found.items()}


def test_the_honest_package_is_taken(tmp_path: Path) -> None:
    package = Package.from_files(*honest_files(tmp_path))
    assert json.loads(package.program.to_json()) == HONEST


def test_the_honest_evaluation_is_taken(tmp_path: Path) -> None:
    package = Package.from_files(*files_with(tmp_path, json.dumps(HONEST_EVALUATION).encode()))
    assert package.evaluation is not None
    assert json.loads(package.evaluation.to_json()) == HONEST_EVALUATION
    assert [leaf.name for leaf in package.evaluation.params[2:]] == ["norm.mean", "norm.var"]


def test_there_are_many_attacks() -> None:
    assert len(ATTACKS) >= 300


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused(name: str, outcomes: dict[str, Outcome]) -> None:
    ending, used, grown_kb = outcomes[name]
    assert ending.startswith(PackageError.__name__ + ":"), ending
    assert re.search(ATTACKS[name].says, ending), ending
    assert used <= SECONDS
    assert grown_kb <= MEMORY_KB
