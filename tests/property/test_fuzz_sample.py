"""A small, fixed sample of `make fuzz`, and that the fuzzer would see what it looks for."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.fuzz import cases, fuzz_packages
from tests.fuzz.fenced import Fence
from tests.fuzz.fuzz_packages import fuzz

SAMPLE = 400


def test_a_sample_of_random_packages_harms_nobody() -> None:
    findings = fuzz(SAMPLE, seed=0)
    assert not findings.bad
    assert sum(findings.outcomes.values()) == SAMPLE
    assert findings.outcomes["ran"] > SAMPLE / 4
    assert findings.outcomes["refused"] > SAMPLE / 8


def _dies(seed: int, folder: Path, say: cases.Say) -> str:
    os.kill(os.getpid(), signal.SIGSEGV)
    return "ran"


def _hangs(seed: int, folder: Path, say: cases.Say) -> str:
    while True:
        pass


def _swallows(seed: int, folder: Path, say: cases.Say) -> str:
    return "ran" if torch.ones(60 << 20).numel() else "failed"


def _errs(seed: int, folder: Path, say: cases.Say) -> str:
    raise IndexError("this is no PackageError")


@pytest.mark.parametrize(
    ("harm", "wrong"),
    [(_dies, "SIGSEGV"), (_hangs, "hangs"), (_swallows, "memory"), (_errs, "unexpected")],
)
def test_the_fuzzer_sees_harm(
    harm: Callable[[int, Path, cases.Say], str], wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cases, "run_case", harm)
    monkeypatch.setattr(fuzz_packages, "HANG_S", 1.0)
    monkeypatch.setattr(fuzz_packages, "MEMORY_BYTES", 100 << 20)
    findings = fuzz(1, seed=7)
    assert [(seed, wrong in what) for seed, what, _ in findings.bad] == [(7, True)]


@pytest.mark.parametrize("at_end", [True, False])
def test_a_fence_kills_who_reads_too_far(at_end: bool) -> None:
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()
        fenced = Fence().enclose(torch.ones(1024), at_end)
        if fenced.sum() == 1024:
            ctypes.string_at(fenced.data_ptr() + (4096 if at_end else -1), 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGSEGV
