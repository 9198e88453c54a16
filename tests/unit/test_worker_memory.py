"""Freed memory stays with a worker for the next micro-batch, and goes back before another stage."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from ravnest_p2p.daemon.environment import thread_environment

MB = 2**20
SCRIPT = """
import json, resource
import numpy
from ravnest_p2p.daemon.worker.resident import ResidentPeak

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def microbatch():
    held = [numpy.ones(4 * 2**20, dtype=numpy.uint8) for _ in range(25)]

microbatch()
before = faults()
for _ in range(5):
    microbatch()
print(json.dumps({"pages": faults() - before, "given back": ResidentPeak().bytes()}))
"""
PAGES = 5 * 100 * MB // 4096
"""Of all the script's micro-batches after the first."""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
def test_a_worker_takes_its_memory_from_the_kernel_once() -> None:
    kept = _run(thread_environment(1))
    assert kept["pages"] < PAGES / 20
    assert kept["given back"] < 100 * MB


def test_the_owners_settings_of_glibc_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"MALLOC_TRIM_THRESHOLD_": str(MB), "MALLOC_MMAP_THRESHOLD_": str(2 * MB)}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert settings.items() <= thread_environment(1).items()


def _run(environment: dict[str, str]) -> dict[str, int]:
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, int] = json.loads(done.stdout)
    return found
