"""Is asynchronous training as fast as the cores, whatever the link? `python -m benchmarks.pipeline --json`.

The same GPT, micro-batches, micro-batches an update, optimizer and cores on every side, in turns:

* ours: a real swarm of two peers, each a `ravnestd` with its p2pd and its worker, in two stages;
* the ceiling: two processes of plain PyTorch that each train the whole model and never talk;
* the best synchronous schedules, of torch.distributed.pipelining over gloo.

Sections: `loopback` (against all of these), `delay` (the same over a link with a real delay between two
network namespaces; needs linux, root and iproute2), `own` (ours over such a link against ours without the
delay), `overhead` (what of a stage's time goes into our code: Python in its operations, between them, in the
worker's other threads and in `ravnestd`).
Sides that are compared take turns of a second (`pipelines.turns`), where TCP can do without a clock that sees
the stops. For the rest a round takes every side once, and the median of the rounds counts. The first updates
never do.
Three hours on two cores; nothing else should run.
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
from typing import Any, NamedTuple

from benchmarks.common import Goal, report
from benchmarks.namespaces import demand
from benchmarks.pipelines import gpt
from benchmarks.pipelines.delay import DEVICE, DelayedLink
from benchmarks.pipelines.synchronous import SCHEDULES
from benchmarks.pipelines.turns import READY, TURN_S, BeganAnew, Start, ratios, take_turns
from ravnest_p2p.testing.local_swarm import Host

ROUNDS, QUICK_ROUNDS = (
    {"loopback": 60, "delay": 5, "own": 5, "overhead": 3},
    {"loopback": 30, "delay": 1, "own": 1, "overhead": 1},
)
SECONDS, QUICK_SECONDS = 20.0, 10.0
FASTEST = 1.5
"""Times more micro-batches than the pipeline makes are made ready."""

Side = Callable[[], dict[str, Any]]


class Training(NamedTuple):
    """What every side does: a model of `gpt.SIZES`, and micro-batches an update."""

    size: str
    m: int


class Delayed(NamedTuple):
    """A training over a link of `one_way_s`."""

    training: Training
    one_way_s: float

    def __str__(self) -> str:
        return f"{self.training.size}, {self.one_way_s * 1e3:g} ms, m = {self.training.m}"


ON_CORES = Training("25M", 16)
"""Of the sections without a delay."""

DELAYED = {
    Delayed(Training("11M", 16), 0.025): 1.0,
    Delayed(Training("11M", 4), 0.025): 1.15,
    Delayed(Training("11M", 16), 0.1): 1.8,
    Delayed(Training("25M", 16), 0.1): None,
}
"""Each with the goal against the best synchronous schedule. What a delay costs that is a matter of how long
computations take beside it: the last has a model for which they take twice as long, and no goal."""

DELAYED_OWN = (Delayed(ON_CORES, 0.025), Delayed(ON_CORES, 0.1))
OWN_TRIES, OWN_ROUNDS, OWN_WANTED = 3, 40, 0.97
"""Of a group of swarms: how often it is begun at most, turns of each, the goal of the groups' median. Stages
are pinned to cores, since swarms of the same kind differ by 3 % by which core a stage got."""

LOOPBACK_STALENESS = 2
"""What our window measures over loopback, at times 3."""

LIMIT_S = 400.0
RATIO, ON_LOOPBACK, UNDELAYED = "ours / it", "ours on loopback", "ours on the same link without its delay"
NEAR = (UNDELAYED, ON_LOOPBACK)
"""What ours over a delay is compared with. The cost of carrying packets stands between the two."""


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
    chosen = [options.section] if options.section else list(SECTIONS)
    demand(parser, chosen, IN_NAMESPACES)
    rounds, seconds = (QUICK_ROUNDS, QUICK_SECONDS) if options.quick else (ROUNDS, SECONDS)
    results: dict[str, Any] = {}
    goals: list[Goal] = []
    for name in chosen:
        results[name], found = SECTIONS[name](rounds[name], seconds)
        goals += found
    return report("pipeline", results, goals, options.json)


def _loopback(rounds: int, _: float) -> tuple[dict[str, Any], list[Goal]]:
    hosts = (Host(), Host())
    others: dict[str, Start] = {"ceiling": partial(_processes, ON_CORES, math.inf)}
    others |= {name: partial(_ranks, name, ON_CORES, math.inf, hosts) for name in SCHEDULES}
    ours = _ours_in_turns(ON_CORES, LOOPBACK_STALENESS, hosts, rounds * len(others))
    rows = _by_turns({"ours": ours, **others}, rounds)
    best = _best(rows)
    return rows, [
        Goal("ours / ceiling, loopback", rows["ceiling"][RATIO], "", ">= 0.97"),
        Goal(f"ours / {best}, loopback", rows[best][RATIO], "", ">= 1.0"),
    ]


def _delay(rounds: int, seconds: float) -> tuple[dict[str, Any], list[Goal]]:
    """By rounds, for TCP does not stand."""
    rows: dict[str, Any] = {}
    goals = []
    for case, wanted in DELAYED.items():
        print(case, file=sys.stderr, flush=True)
        training = case.training
        with DelayedLink(case.one_way_s) as link:
            sides = {"ours": _ours(training, seconds, link.hosts)}
            sides["ceiling"] = partial(_together, partial(_processes, training, seconds))
            sides |= {
                name: partial(_together, partial(_ranks, name, training, seconds, link.hosts))
                for name in SCHEDULES
            }
            measured = _in_rounds(sides, rounds)
        found = {which: _against(measured, which) for which in ("ceiling", *SCHEDULES)}
        best = _best(found)
        if wanted is not None:
            goals.append(Goal(f"ours / {best}, {case}", found[best][RATIO], "", f">= {wanted}"))
        rows |= {f"{case}: {side}": row for side, row in found.items()}
        rows |= {f"{case}: ours, round {n}": ours for n, ours in enumerate(measured["ours"], 1)}
    return rows, goals


def _own(groups: int, seconds: float) -> tuple[dict[str, Any], list[Goal]]:
    """In turns, for a few hundredths count; a link that stands with its side makes that possible."""
    rows: dict[str, Any] = {}
    goals = []
    for case in DELAYED_OWN:
        print(f"{case}: how far ours runs ahead …", file=sys.stderr, flush=True)
        with DelayedLink(case.one_way_s) as link:
            alone = _ours(case.training, seconds, link.hosts)()
        rows[f"{case}: alone"] = alone
        found = []
        for number in range(1, groups + 1):
            print(f"group {number} of {groups} …", file=sys.stderr, flush=True)
            found.append(_tried(partial(_group, case, alone["staleness"])))
            rows |= {f"{case}: {which}, group {number}": found[-1][which] for which in NEAR}
        for which in NEAR:
            ratio = statistics.median(group[which][RATIO] for group in found)
            goals.append(Goal(f"ours / {which}, {case}", ratio, "", f">= {OWN_WANTED}"))
    return rows, goals


def _group(case: Delayed, staleness: int) -> dict[str, Any]:
    """Our side on a delayed link in turns with our side on `NEAR`.

    Args:
        staleness: what our window measures on the delayed link where it does not stand.
    """

    def side(hosts: Sequence[Host], staleness: int) -> Start:
        return _ours_in_turns(case.training, staleness, hosts, len(NEAR) * OWN_ROUNDS, "pinned")

    with DelayedLink(case.one_way_s, stands=True) as far, DelayedLink(0.0, stands=True) as near:
        sides = {
            "ours": side(far.hosts, staleness),
            UNDELAYED: side(near.hosts, LOOPBACK_STALENESS),
            ON_LOOPBACK: side((Host(), Host()), LOOPBACK_STALENESS),
        }
        return _by_turns(sides, OWN_ROUNDS, {"ours": far.pid, UNDELAYED: near.pid})


def _tried(group: Side) -> dict[str, Any]:
    """A group in which no side began anew, as may happen to one that stands while others start."""
    for left in reversed(range(OWN_TRIES)):
        try:
            return group()
        except BeganAnew as error:
            print(f"{error}; {left} tries left", file=sys.stderr, flush=True)
    raise RuntimeError(f"a side began anew in each of {OWN_TRIES} groups of swarms")


def _against(measured: Mapping[str, Sequence[dict[str, Any]]], other: str) -> dict[str, float]:
    """Medians of the rounds, and of their ratios."""
    pairs = [(_rate(one), _rate(ours)) for one, ours in zip(measured[other], measured["ours"], strict=True)]
    rate, mine, ratio = (
        statistics.median(column) for column in zip(*((a, b, b / a) for a, b in pairs), strict=True)
    )
    return {"micro-batches/s": rate, "ours meanwhile": mine, RATIO: ratio}


def _overhead(rounds: int, seconds: float) -> tuple[dict[str, Any], list[Goal]]:
    """Shares of one stage's time; the mean of both stages, the median of the rounds."""
    updates = str(max(1, _updates(ON_CORES, seconds) // 2))
    sides = {
        "ours": _ours(ON_CORES, seconds, (Host(), Host())),
        "kernels": lambda: _end(_start(Host(), "kernels", ON_CORES, updates)),
    }
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


SECTIONS = {"loopback": _loopback, "delay": _delay, "own": _own, "overhead": _overhead}
IN_NAMESPACES = ("delay", "own")


def _ours_in_turns(
    training: Training, staleness: int, hosts: Sequence[Host], turns: int, *more: str
) -> Start:
    updates = str(_updates(training, turns * TURN_S * FASTEST))
    options = (updates, _places(hosts), "turns", str(staleness), *more)
    return lambda: [_start(hosts[0], "ours", training, *options)]


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


def _ours(training: Training, seconds: float, hosts: Sequence[Host]) -> Side:
    updates = str(max(2, _updates(training, seconds)))
    return lambda: _end(_start(hosts[0], "ours", training, updates, _places(hosts)))


def _updates(training: Training, seconds: float) -> int:
    return round(seconds / (training.m * gpt.SIZES[training.size].microbatch_s))


def _places(hosts: Sequence[Host]) -> str:
    return json.dumps([[host.address, host.prefix] for host in hosts])


def _processes(training: Training, seconds: float) -> list[subprocess.Popen[str]]:
    return [_start(Host(), "whole", training, str(seconds)) for _ in range(2)]


def _ranks(
    name: str, training: Training, seconds: float, hosts: Sequence[Host]
) -> list[subprocess.Popen[str]]:
    meeting = {
        "MASTER_ADDR": hosts[0].address,
        "MASTER_PORT": str(random.randint(20_000, 30_000)),
        "GLOO_SOCKET_IFNAME": DEVICE if hosts[0].prefix else "lo",
    }
    return [
        _start(host, "synchronous", training, name, str(rank), str(seconds), more=meeting)
        for rank, host in enumerate(hosts)
    ]


def _together(start: Start) -> dict[str, Any]:
    """Both processes' micro-batches; a rank that is not the first tells none."""
    processes = start()
    try:
        found = [one for one in map(_end, processes) if one]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return {
        "microbatches": sum(one["microbatches"] for one in found),
        "seconds": statistics.mean(one["seconds"] for one in found),
    }


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


def _start(
    host: Host, part: str, training: Training, *arguments: str, more: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(more or {})}
    command = [sys.executable, "-m", f"benchmarks.pipelines.{part}", training.size, str(training.m)]
    return subprocess.Popen(
        [*host.prefix, *command, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def _end(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What it printed last, as JSON; nothing where that is only that it is ready."""
    try:
        out, errors = process.communicate(timeout=LIMIT_S)
    except BaseException:
        process.kill()
        raise
    if process.returncode:
        raise RuntimeError(f"a side of the comparison failed: {errors[-2000:]}")
    lines = [line for line in out.splitlines() if line != READY]
    found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    return found


if __name__ == "__main__":
    sys.exit(main())
