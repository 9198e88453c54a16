"""Is asynchronous training as fast as the cores, whatever the link? `python -m benchmarks.pipeline --json`.

The same GPT, micro-batches, micro-batches an update, optimizer and cores on every side, in turns:

* ours: a real swarm of two peers, each a `ravnestd` with its p2pd and its worker, in two stages;
* the ceiling: two processes of plain PyTorch that each train the whole model and never talk;
* the best synchronous schedules, of torch.distributed.pipelining over gloo.

Sections: `loopback` (against all of these), `delay` (a link with a real delay between two network namespaces;
needs linux, root and iproute2), `overhead` (what of a stage's time goes into our code: Python in its
operations, between them, in the worker's other threads and in `ravnestd`).
On loopback, sides take turns of a second (`pipelines.turns`). In the others a round takes every side once;
what is compared is the median of the rounds' ratios. Micro-batches a second are without the first updates.
About an hour and a half on two cores; nothing else should run.
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
from typing import Any

from benchmarks.common import Goal, report
from benchmarks.pipelines.delay import DEVICE, DelayedLink
from benchmarks.pipelines.synchronous import SCHEDULES
from benchmarks.pipelines.turns import TURN_S, ratios, take_turns
from ravnest_p2p.testing.local_swarm import Host

ROUNDS, QUICK_ROUNDS = (
    {"loopback": 60, "delay": 3, "overhead": 3},
    {"loopback": 30, "delay": 1, "overhead": 1},
)
SECONDS, QUICK_SECONDS = 30.0, 10.0
MICROBATCH_S = 0.5
"""About what the pipeline takes for one; only for choosing how many updates to train."""
FASTEST = 3.0
"""More micro-batches a second than it makes; that many are made ready."""

LIMIT_S = 400.0


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
    m, hosts = 16, (Host(), Host())
    others = {"ceiling": lambda: [_start(Host(), "whole", str(m)) for _ in range(2)]}
    others |= {name: partial(_ranks, name, m, math.inf, hosts) for name in SCHEDULES}
    updates = math.ceil(rounds * len(others) * TURN_S * FASTEST / m)
    ours = partial(_start, Host(), "ours", str(m), str(updates), _places(hosts), "turns")
    turns, ends = take_turns({"ours": lambda: [ours()], **others}, "ours", rounds)
    rows = {
        name: {"micro-batches/s": rate, "ours meanwhile": mine, "ours / it": mine / rate}
        for name, (rate, mine) in ratios(turns, ends).items()
    }
    best = max(SCHEDULES, key=lambda name: -rows[name]["ours / it"])
    about = {key: value for key, value in ends["ours"][0].items() if key != "marks"}
    return {"ours": about, **rows}, [
        Goal("ours / ceiling, loopback", rows["ceiling"]["ours / it"], "", ">= 0.97"),
        Goal(f"ours / {best}, loopback", rows[best]["ours / it"], "", ">= 1.0"),
    ]


def _delay(rounds: int, seconds: float) -> tuple[dict[str, Any], list[Goal]]:
    rows: dict[str, Any] = {}
    goals = []
    for one_way_s, m, wanted in ((0.025, 16, 1.0), (0.025, 4, 1.15), (0.1, 16, 1.8)):
        name = f"{one_way_s * 1e3:g} ms, m = {m}"
        with DelayedLink(one_way_s) as hosts:
            loopback = (Host(), Host())
            sides = {"ours on loopback": _ours(m, seconds, loopback), "ours": _ours(m, seconds, hosts)}
            sides |= {which: _synchronous(which, m, seconds, hosts) for which in SCHEDULES}
            measured = _in_turns(sides, rounds)
        best = _best(measured)
        rows |= {f"{name}: {side}": row for side, row in _rows(measured).items()}
        goals.append(Goal(f"ours / {best}, {name}", _ratio(measured, "ours", best), "", f">= {wanted}"))
        if m == 16:
            own = _ratio(measured, "ours", "ours on loopback")
            goals.append(Goal(f"ours / ours on loopback, {name}", own, "", ">= 0.97"))
    return rows, goals


def _overhead(rounds: int, seconds: float) -> tuple[dict[str, Any], list[Goal]]:
    """Shares of one stage's time; the mean of both stages, the median of the rounds."""
    m, hosts = 16, (Host(), Host())
    updates = str(max(1, round(seconds / (m * MICROBATCH_S) / 2)))
    sides = {"ours": _ours(m, seconds, hosts), "kernels": lambda: _run(Host(), "kernels", str(m), updates)}
    rows: dict[str, Any] = {}
    for number, (ours, alone) in enumerate(zip(*_in_turns(sides, rounds).values(), strict=True), 1):
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


def _ours(m: int, seconds: float, hosts: Sequence[Host]) -> Side:
    updates = max(2, round(seconds / (m * MICROBATCH_S)))
    return lambda: _run(hosts[0], "ours", str(m), str(updates), _places(hosts))


def _places(hosts: Sequence[Host]) -> str:
    return json.dumps([[host.address, host.prefix] for host in hosts])


def _synchronous(name: str, m: int, seconds: float, hosts: Sequence[Host]) -> Side:
    def measure() -> dict[str, Any]:
        first, _ = [_end(process) for process in _ranks(name, m, seconds, hosts)]
        return first

    return measure


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


def _in_turns(sides: Mapping[str, Side], rounds: int) -> dict[str, list[dict[str, Any]]]:
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


def _ratio(measured: Mapping[str, list[dict[str, Any]]], side: str, other: str) -> float:
    pairs = zip(measured[side], measured[other], strict=True)
    return statistics.median(_rate(a) / _rate(b) for a, b in pairs)


def _best(measured: Mapping[str, list[dict[str, Any]]]) -> str:
    return max(SCHEDULES, key=lambda name: statistics.median(map(_rate, measured[name])))


def _rows(measured: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for name, runs in measured.items():
        rates = sorted(map(_rate, runs))
        rows[name] = {"micro-batches/s": statistics.median(rates), "least": rates[0], "most": rates[-1]}
        about = {key: value for key, value in runs[-1].items() if key not in ("microbatches", "seconds")}
        rows[name] |= about
    return rows


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
