"""Is asynchronous training as fast as the cores, whatever the link? `python -m benchmarks.pipeline --json`.

The same GPT, micro-batches, micro-batches an update, optimizer and cores on every side, in turns:

* ours: a real swarm of two peers, each a `ravnestd` with its p2pd and its worker, in two stages;
* the ceiling: two processes of plain PyTorch that each train the whole model and never talk;
* the best synchronous schedules, of torch.distributed.pipelining over gloo.

Sections: `loopback` (against all of these), `delay` (a link with a real delay between two network namespaces;
needs linux, root and iproute2), `overhead` (what of a stage's time goes into our code: Python in its
operations, between them, in the worker's other threads and in `ravnestd`).
Sides that are compared take turns of a second (`pipelines.turns`), where TCP can do without a clock that sees
the stops. For the rest a round takes every side once, and the median of the rounds counts. The first updates
never do.
About an hour on two cores; nothing else should run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

from benchmarks.common import Goal, report
from benchmarks.pipelines.delay import DEVICE, DelayedLink
from benchmarks.pipelines.synchronous import SCHEDULES
from benchmarks.pipelines.turns import TURN_S, Start, ratios, take_turns
from ravnest_p2p.testing.local_swarm import Host

ROUNDS, QUICK_ROUNDS = (
    {"loopback": 60, "delay": 2, "overhead": 3},
    {"loopback": 30, "delay": 1, "overhead": 1},
)
SECONDS, QUICK_SECONDS = 30.0, 10.0
MICROBATCH_S = 0.5
"""About what the pipeline takes for one; only for choosing how many updates to train."""
FASTEST = 3.0
"""More micro-batches a second than it makes; that many are made ready."""

DELAYS = ((0.025, 16, 1.0), (0.025, 4, 1.15), (0.1, 16, 1.8))
"""Seconds one way, micro-batches an update, and the goal against the best synchronous schedule."""

OWN_ROUNDS = 60
"""Of ours over a delay and ours on loopback."""

LOOPBACK_M = 16
LOOPBACK_STALENESS = 2
"""What our window measures over loopback, at times 3."""

LIMIT_S = 400.0
RATIO, ON_LOOPBACK = "ours / it", "ours on loopback"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pipeline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="one JSON object for machines")
    parser.add_argument("--quick", action="store_true", help="one short round; never for a claim")
    parser.add_argument("--section", choices=SECTIONS, help="only this one (default: all)")
    options = parser.parse_args(arguments)
    rounds, seconds = (QUICK_ROUNDS, QUICK_SECONDS) if options.quick else (ROUNDS, SECONDS)
    results: dict[str, Any] = {}
    goals: list[Goal] = []
    for name, section in SECTIONS.items():
        if options.section in (None, name):
            results[name], found = section(rounds[name], seconds)
            goals += found
    return report("pipeline", results, goals, options.json)


def _loopback(rounds: int, seconds: float) -> tuple[dict[str, Any], list[Goal]]:
    m, hosts = LOOPBACK_M, (Host(), Host())
    others: dict[str, Start] = {"ceiling": lambda: [_start(Host(), "whole", str(m)) for _ in range(2)]}
    others |= {name: partial(_ranks, name, m, math.inf, hosts) for name in SCHEDULES}
    ours = _ours_in_turns(m, LOOPBACK_STALENESS, hosts, rounds * len(others))
    rows = _by_turns({"ours": ours, **others}, rounds)
    best = _best(rows)
    return rows, [
        Goal("ours / ceiling, loopback", rows["ceiling"][RATIO], "", ">= 0.97"),
        Goal(f"ours / {best}, loopback", rows[best][RATIO], "", ">= 1.0"),
    ]


def _delay(rounds: int, seconds: float) -> tuple[dict[str, Any], list[Goal]]:
    """Against the others by rounds, for TCP does not stand; against our own loopback in turns.

    A few hundredths count there, and a link that stands with its side gives them. Its staleness is what our
    window measured on the one that does not.
    """
    rows: dict[str, Any] = {}
    goals = []
    for one_way_s, m, wanted in DELAYS:
        name = f"{one_way_s * 1e3:g} ms, m = {m}"
        print(name, file=sys.stderr, flush=True)
        with DelayedLink(one_way_s) as link:
            sides = {"ours": _ours(m, seconds, link.hosts)}
            sides |= {which: _synchronous(which, m, seconds, link.hosts) for which in SCHEDULES}
            measured = _in_rounds(sides, rounds)
        found = {which: _against(measured, which) for which in SCHEDULES}
        if m == LOOPBACK_M:
            found |= _own(one_way_s, max(ours["staleness"] for ours in measured["ours"]))
            goals.append(Goal(f"ours / {ON_LOOPBACK}, {name}", found[ON_LOOPBACK][RATIO], "", ">= 0.97"))
        best = _best(found)
        goals.append(Goal(f"ours / {best}, {name}", found[best][RATIO], "", f">= {wanted}"))
        rows |= {f"{name}: {side}": row for side, row in found.items()}
        rows |= {f"{name}: ours, round {n}": ours for n, ours in enumerate(measured["ours"], 1)}
    return rows, goals


def _own(one_way_s: float, staleness: int) -> dict[str, Any]:
    """Our side on a delayed link in turns with our side on loopback."""
    with DelayedLink(one_way_s, stands=True) as link:
        sides = {
            "ours": _ours_in_turns(LOOPBACK_M, staleness, link.hosts, OWN_ROUNDS),
            ON_LOOPBACK: _ours_in_turns(LOOPBACK_M, LOOPBACK_STALENESS, (Host(), Host()), OWN_ROUNDS),
        }
        return {ON_LOOPBACK: _by_turns(sides, OWN_ROUNDS, {"ours": link.pid})[ON_LOOPBACK]}


def _against(measured: Mapping[str, Sequence[dict[str, Any]]], other: str) -> dict[str, float]:
    """Medians of the rounds, and of their ratios."""
    pairs = [(_rate(one), _rate(ours)) for one, ours in zip(measured[other], measured["ours"], strict=True)]
    rate, mine, ratio = (
        statistics.median(column) for column in zip(*((a, b, b / a) for a, b in pairs), strict=True)
    )
    return {"micro-batches/s": rate, "ours meanwhile": mine, RATIO: ratio}


def _overhead(rounds: int, seconds: float) -> tuple[dict[str, Any], list[Goal]]:
    """Shares of one stage's time; the mean of both stages, the median of the rounds."""
    m, hosts = 16, (Host(), Host())
    updates = str(max(1, round(seconds / (m * MICROBATCH_S) / 2)))
    sides = {"ours": _ours(m, seconds, hosts), "kernels": lambda: _run(Host(), "kernels", str(m), updates)}
    rows: dict[str, Any] = {}
    for number, (ours, alone) in enumerate(zip(*_in_rounds(sides, rounds).values(), strict=True), 1):
        stages = len(ours["busy"])
        busy, between = sum(ours["busy"]) / stages, sum(ours["between"]) / stages
        rows[f"round {number}"] = {
            "in operations, not in kernels": busy * (1 - sum(alone["kernels"]) / stages),
            "between operations": between,
            "worker's other threads": ours["cpu"]["worker's other threads"] / stages,
            "ravnestd": ours["cpu"]["ravnestd"] / stages,
        }
    median = {key: statistics.median(row[key] for row in rows.values()) for key in rows["round 1"]}
    return rows | {"median": median}, [
        Goal("our code's share of a stage's time", sum(median.values()), "", "<= 0.05")
    ]


SECTIONS = {"loopback": _loopback, "delay": _delay, "overhead": _overhead}

Side = Callable[[], dict[str, Any]]


def _ours_in_turns(m: int, staleness: int, hosts: Sequence[Host], turns: int) -> Start:
    updates = math.ceil(turns * TURN_S * FASTEST / m)
    options = (str(m), str(updates), _places(hosts), "turns", str(staleness))
    return lambda: [_start(hosts[0], "ours", *options)]


def _by_turns(
    sides: Mapping[str, Start], rounds: int, links: Mapping[str, int] = MappingProxyType({})
) -> dict[str, Any]:
    turns, ends = take_turns(sides, "ours", rounds, links)
    rows: dict[str, Any] = {
        name: {"micro-batches/s": rate, "ours meanwhile": mine, RATIO: mine / rate}
        for name, (rate, mine) in ratios(turns, ends).items()
    }
    print(json.dumps(rows), file=sys.stderr, flush=True)
    about = {key: value for key, value in ends["ours"].said[0].items() if key != "marks"}
    return {"ours": about, **rows}


def _best(rows: Mapping[str, Any]) -> str:
    return min(SCHEDULES, key=lambda name: rows[name][RATIO])


def _ours(m: int, seconds: float, hosts: Sequence[Host]) -> Side:
    updates = max(2, round(seconds / (m * MICROBATCH_S)))
    return lambda: _run(hosts[0], "ours", str(m), str(updates), _places(hosts))


def _places(hosts: Sequence[Host]) -> str:
    return json.dumps([[host.address, host.prefix] for host in hosts])


def _ranks(name: str, m: int, seconds: float, hosts: Sequence[Host]) -> list[subprocess.Popen[str]]:
    meeting = {
        "MASTER_ADDR": hosts[0].address,
        "MASTER_PORT": str(random.randint(20_000, 30_000)),
        "GLOO_SOCKET_IFNAME": DEVICE if hosts[0].prefix else "lo",
    }
    return [
        _start(host, "synchronous", name, str(rank), str(m), str(seconds), more=meeting)
        for rank, host in enumerate(hosts)
    ]


def _synchronous(name: str, m: int, seconds: float, hosts: Sequence[Host]) -> Side:
    def run() -> dict[str, Any]:
        first, second = _ranks(name, m, seconds, hosts)
        try:
            return _end(first)
        finally:
            second.kill()
            second.communicate()

    return run


def _in_rounds(sides: Mapping[str, Side], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Every second round backwards: what a machine's speed drifts by meanwhile then counts for no side."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            print(f"round {number + 1} of {rounds}: {name} …", end=" ", file=sys.stderr, flush=True)
            found[name].append(sides[name]())
            print(f"{_rate(found[name][-1]):.3f} micro-batches/s", file=sys.stderr, flush=True)
    return found


def _rate(measured: Mapping[str, Any]) -> float:
    rate: float = measured.get("microbatches", 0) / measured.get("seconds", 1.0)
    return rate


def _run(host: Host, part: str, *arguments: str) -> dict[str, Any]:
    return _end(_start(host, part, *arguments))


def _start(
    host: Host, part: str, *arguments: str, more: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(more or {})}
    return subprocess.Popen(
        [*host.prefix, sys.executable, "-m", f"benchmarks.pipelines.{part}", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def _end(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What it printed last, as JSON."""
    try:
        out, errors = process.communicate(timeout=LIMIT_S)
    except BaseException:
        process.kill()
        raise
    if process.returncode:
        raise RuntimeError(f"a side of the comparison failed: {errors[-2000:]}")
    lines = out.splitlines()
    found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    return found


if __name__ == "__main__":
    sys.exit(main())
