"""Sides that run in turns of a second: what a machine's speed drifts by meanwhile counts for none of them.

Problem: a shared machine is a quarter faster in one minute than in the next, and a side takes a minute to
start. Solution: all sides are started, and all but one are stopped (SIGSTOP) at any time. Ours has every
second turn, and is compared with each of the others by its turns before theirs. Nothing happens at a stopped
side, and its link is stopped with it, so it goes on where it was.

A side is one process or more, which end when their standard input does. Each says `READY` once it trains,
and at the end {"marks": [[second since the epoch, micro-batches done], …], …}.
"""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import psutil

READY = "ready"
TURN_S = 1.2
"""Shorter than any answer that a peer waits for before it takes another for dead."""

END_TIMEOUT_S = 120.0

Marks = list[tuple[float, float]]
Start = Callable[[], Sequence[subprocess.Popen[str]]]


class Turn(NamedTuple):
    side: str
    begin_s: float
    end_s: float


class End(NamedTuple):
    """Of a side: when it was let go on for good, and what each of its processes said then."""

    resumed_s: float
    said: list[dict[str, Any]]


def say_ready() -> None:
    """Tell whoever takes turns that this process trains."""
    print(READY, flush=True)


def told_to_end() -> bool:
    """Whether it is time to say what was done."""
    return bool(select.select([sys.stdin], [], [], 0)[0])


class BeganAnew(RuntimeError):
    """A side started other processes while turns were taken, and so worked in the turns of others."""


class Side:
    """One side's processes, stopped and let go on together with all that they started."""

    def __init__(self, start: Start, link: int | None = None) -> None:
        """Returns once all train; they run.

        Args:
            link: the process that is stopped with them, where one carries what they send.
        Raises:
            RuntimeError: one of them ended.
        """
        self._processes = start()
        for process in self._processes:
            assert process.stdout is not None
            if process.stdout.readline().strip() != READY:
                process.kill()
                raise RuntimeError(f"a side of the comparison failed: {process.communicate()[1][-2000:]}")
        pids = [process.pid for process in self._processes] + ([] if link is None else [link])
        self._roots = [psutil.Process(pid) for pid in pids]
        self._all = self._found()

    def _found(self) -> list[psutil.Process]:
        return [one for root in self._roots for one in (root, *root.children(recursive=True))]

    def check(self) -> None:
        """Raises `BeganAnew` where it has processes that did not stand in the turns of others."""
        if new := set(self._found()) - set(self._all):
            raise BeganAnew(f"a side has begun anew: {[process.pid for process in new]}")

    def signal(self, number: signal.Signals) -> None:
        for one in self._all:
            try:
                one.send_signal(number)
            except psutil.NoSuchProcess:
                continue

    def end(self) -> End:
        """Let it do what it has begun, and listen."""
        resumed_s = time.time()
        self.signal(signal.SIGCONT)
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None
        ended = [process.communicate(timeout=END_TIMEOUT_S) for process in self._processes]
        if any(process.returncode for process in self._processes):
            raise RuntimeError(f"a side of the comparison failed: {[errors[-2000:] for _, errors in ended]}")
        return End(resumed_s, [json.loads(out.splitlines()[-1]) for out, _ in ended if out.strip()])

    def kill(self) -> None:
        self.signal(signal.SIGKILL)


def take_turns(
    starts: Mapping[str, Start], ours: str, rounds: int, links: Mapping[str, int] = MappingProxyType({})
) -> tuple[list[Turn], dict[str, End]]:
    """All turns, ours and another by pairs, and how each side ended.

    Raises:
        BeganAnew: one did.
        RuntimeError: one failed.
    """
    turns: list[Turn] = []
    with ExitStack() as stack:
        sides: dict[str, Side] = {}
        for name, start in starts.items():
            print(f"{name} starts …", file=sys.stderr, flush=True)
            sides[name] = Side(start, links.get(name))
            stack.callback(sides[name].kill)
            sides[name].signal(signal.SIGSTOP)
        for number in range(rounds):
            print(f"round {number + 1} of {rounds} …", file=sys.stderr, flush=True)
            for other in (name for name in sides if name != ours):
                for name in (ours, other):
                    sides[name].signal(signal.SIGCONT)
                    begin_s = time.time()
                    time.sleep(TURN_S)
                    turns.append(Turn(name, begin_s, time.time()))
                    sides[name].signal(signal.SIGSTOP)
            for side in sides.values():
                side.check()
        ends = {name: side.end() for name, side in sides.items()}
        stack.pop_all()
    return turns, ends


def done_in(marks: Marks, turns: Sequence[Turn], resumed_s: float) -> list[float]:
    """Micro-batches done in each of a side's turns; NaN where they were not counted from begin to end.

    Between two marks they are done evenly over the time in which the side ran.

    Args:
        resumed_s: when it ran again after the last turn; a mark from then on tells what that one was worth.
    """
    begins = np.array([*(turn.begin_s for turn in turns), resumed_s])
    lengths = np.array([*(turn.end_s - turn.begin_s for turn in turns), np.inf])
    ran_s = np.concatenate([[0.0], np.cumsum(lengths[:-1])])
    at_s, done = np.array(marks).T
    # What was done before the first turn, and nothing since, counts as just before it.
    known = max(0, int(np.searchsorted(at_s, begins[0])) - 1)
    at_s, done = np.maximum(at_s[known:], begins[0]), done[known:]
    turn = np.searchsorted(begins, at_s, side="right") - 1
    run_s = ran_s[turn] + np.minimum(at_s - begins[turn], lengths[turn])
    found: list[float] = np.diff(np.interp(ran_s, run_s, done, left=np.nan, right=np.nan)).tolist()
    return found


def ratios(turns: Sequence[Turn], ends: Mapping[str, End]) -> dict[str, tuple[float, float]]:
    """By other side: its micro-batches a second, and ours in the turns before those.

    Raises:
        RuntimeError: less than half of the pairs of turns with one were counted, as where ours began anew.
    """
    rates: list[float] = [0.0] * len(turns)
    for name, end in ends.items():
        own = [n for n, turn in enumerate(turns) if turn.side == name]
        for process in end.said:
            done = done_in(process["marks"], [turns[n] for n in own], end.resumed_s)
            for n, count in zip(own, done, strict=True):
                rates[n] += count / (turns[n].end_s - turns[n].begin_s)
    pairs: dict[str, list[tuple[float, float]]] = {}
    for n in range(0, len(turns), 2):
        if not (np.isnan(rates[n]) or np.isnan(rates[n + 1])):
            pairs.setdefault(turns[n + 1].side, []).append((rates[n + 1], rates[n]))
    for name in ends.keys() - {turns[0].side}:
        wanted = sum(turn.side == name for turn in turns) / 2
        if len(pairs.get(name, ())) < wanted:
            raise RuntimeError(
                f"too few turns of {name} and of ours were counted: a side began anew, or stood"
            )
    return {name: tuple(map(float, np.mean(found, axis=0))) for name, found in pairs.items()}  # type: ignore[misc]
