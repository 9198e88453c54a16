"""Fuzz the model room: random packages are validated, and run where they are accepted, in child processes.

A finding is an attempt that ends its process by a signal, computes for more than five seconds, takes more
than a gigabyte, or gets another error than `PackageError` out of the validation. Attempts follow from their
seeds alone: `--seed S --count 1` repeats one.

    python -m tests.fuzz.fuzz_packages --count 100000
"""

from __future__ import annotations

import argparse
import faulthandler
import functools
import mmap
import os
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.fuzz import cases

HANG_S = 5.0
STUCK_S = 60.0
"""Asleep for so long; a child that is ready to run only waits for the computer."""
MEMORY_BYTES = 1 << 30
CHILD_CASES = 2000
OUTCOMES = ("unbuilt", "refused", "failed", "ran")
TEXT_BYTES = 1 << 16
_FINDING = 77
_HEAD = struct.Struct("<qdI4q")


@dataclass
class Findings:
    """Outcomes of all attempts, and (seed, what happened, program) of the bad ones."""

    outcomes: Counter[str] = field(default_factory=Counter)
    bad: list[tuple[int, str, bytes]] = field(default_factory=list)


class Board:
    """Memory that a child shares with its parent: the seed at work, its start, its program, the counts."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _HEAD.size + TEXT_BYTES)
        self.counts = [0] * len(OUTCOMES)
        self._seed, self._started_s = -1, 0.0

    def begin(self, seed: int, started_s: float) -> None:
        self._seed, self._started_s = seed, started_s
        self.say(b"")

    def say(self, text: bytes) -> None:
        text = text[:TEXT_BYTES]
        self._memory[_HEAD.size : _HEAD.size + len(text)] = text
        # Not pack_into, which writes zeros first; the parent may look at any moment.
        self._memory[: _HEAD.size] = _HEAD.pack(self._seed, self._started_s, len(text), *self.counts)

    def read(self) -> tuple[int, float, bytes, list[int]]:
        head, again = b"", self._memory[: _HEAD.size]
        while head != again:
            head, again = again, self._memory[: _HEAD.size]
        seed, started_s, length, *counts = _HEAD.unpack(head)
        return seed, started_s, self._memory[_HEAD.size : _HEAD.size + length], counts


def _child(board: Board, first: int, end: int, folder: Path) -> None:
    """Work through seeds; never returns."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.disable()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Path(os.devnull).open("w") as quiet:
        os.dup2(quiet.fileno(), 2)
    for seed in range(first, min(end, first + CHILD_CASES)):
        board.begin(seed, time.process_time())
        try:
            outcome = cases.run_case(seed, folder, board.say)
        except BaseException:
            board.say(traceback.format_exc().encode()[-TEXT_BYTES:])
            os._exit(_FINDING)
        board.counts[OUTCOMES.index(outcome)] += 1
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak > MEMORY_BYTES >> 10:
            os._exit(_FINDING + 1)
        if seed % 200 == 0:
            FakeTensorMode.cache_clear()
    board.begin(min(end, first + CHILD_CASES), time.process_time())
    os._exit(0)


def _watch(pid: int, board: Board) -> str:
    """Wait for a child's end; "" for a good one, else what was wrong."""
    process = psutil.Process(pid)
    seen, since = -1, time.monotonic()
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            if code < 0:
                return f"killed by {signal.Signals(-code).name}"
            named = {0: "", _FINDING: "an unexpected error", _FINDING + 1: "too much memory"}
            return named.get(code, f"exit code {code}")
        seed, started_s, _, _ = board.read()
        if seed != seen:
            seen, since = seed, time.monotonic()
        used = process.cpu_times()
        waits = time.monotonic() - since > STUCK_S and process.status() != psutil.STATUS_RUNNING
        if waits or used.user + used.system - started_s > HANG_S:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return "hangs"
        time.sleep(0.02)


def fuzz(
    count: int, seed: int, seconds: float = float("inf"), say: Callable[[str], None] = lambda _: None
) -> Findings:
    """Run attempts `seed` … `seed + count - 1`, or as many as the time allows.

    Args:
        say: told from time to time how far it is.
    """
    findings = Findings()
    torch.set_num_threads(1)
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for family in cases.FAMILIES:
            cases.document(family)
            cases.weights_bytes(Path(folder), family)
        place = seed
        while place < seed + count and time.monotonic() - started_s < seconds:
            board = Board()
            board.begin(place, 0.0)
            pid = os.fork()
            if pid == 0:
                _child(board, place, seed + count, Path(folder))
            wrong = _watch(pid, board)
            reached, _, text, counts = board.read()
            findings.outcomes.update(dict(zip(OUTCOMES, counts, strict=True)))
            place = reached
            say(f"{place - seed} of {count} attempts, {len(findings.bad) + bool(wrong)} findings")
            if wrong:
                print(f"seed {reached}: {wrong}\n    {text[-1500:].decode(errors='replace')}", flush=True)
                findings.bad.append((reached, wrong, text))
                findings.outcomes["bad"] += 1
                place += 1
    return findings


def main() -> None:
    parser = argparse.ArgumentParser(description="Random packages against the model room.")
    parser.add_argument("--count", type=int, default=100_000, help="attempts")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first attempt; each next one has the next"
    )
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop early after this time")
    options = parser.parse_args()
    say = functools.partial(print, file=sys.stderr, flush=True)
    findings = fuzz(options.count, options.seed, options.seconds, say)
    print(dict(findings.outcomes))
    sys.exit(bool(findings.bad))


if __name__ == "__main__":
    main()
