"""Is a stage ever idle while it could work? `python -m benchmarks.pipeline_sim --json`, a minute.

The product's own schedule runs under a virtual clock; the figures are exact and the same on every machine.
A stage's utilisation is its busy time over the whole run, the filling and the draining at its ends included.

Sections: `ideal` (equal stages, a window that fits the links' latency), `narrow` (the window for a latency
of 0 where there is one: what the right window is for), `uneven` (one stage slower than the others: it is the
one that must never wait), `broken` (connections that break and repeat frames), `measured` (nobody tells the
stages the latency: each finds its window by itself, from the narrowest on, also where no whole number of
micro-batches fits).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from itertools import product
from typing import Any

from benchmarks.common import Goal, report
from ravnest_p2p.core.pipeline.schedule import Speculate, staleness_for
from ravnest_p2p.core.pipeline.window import FIXED, MEASURED
from ravnest_p2p.testing.lossy_link import Faults
from ravnest_p2p.testing.pipeline_sim import Report, Scenario, SimCluster, SimStage, simulate

STAGES = (2, 4, 8)
LATENCIES = (0.0, 1.0, 2.0)
UNKNOWN_LATENCIES = (0.0, 0.25, 0.5, 1.0, 2.0, 5.0)
UPDATES, QUICK_UPDATES = 100, 20
SLOWER = 1.5
RARE_BREAKS = Faults(break_probability=0.0005, repeat_probability=0.01, reconnect_s=4.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline_sim", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object for machines")
    parser.add_argument("--quick", action="store_true", help="shorter runs; never for a claim")
    options = parser.parse_args(arguments)
    updates = QUICK_UPDATES if options.quick else UPDATES
    sections: dict[str, Any] = {name: {} for name in ("ideal", "narrow", "uneven", "broken", "measured")}
    goals: list[Goal] = []
    for stages, latency in product(STAGES, LATENCIES):
        name = f"{stages} stages, latency {latency:g}"
        ideal = _run(stages, latency, updates)
        busy = _slowest_busy(ideal)
        sections["ideal"][name] = {
            "micro-batches an update": _m(stages, latency),
            "staleness": staleness_for(0, stages, latency),
            "busy": busy,
            "synchronous 1F1B": _synchronous(stages, latency),
        }
        goals.append(Goal(f"busy: {name}", busy, "", ">= 0.97" if latency == 0 else ">= 0.95"))
        slow = _run(stages, latency, updates, slower=stages // 2)
        sections["uneven"][name] = {"busy": slow.utilisation(0, stages // 2)}
        broken = _run(stages, latency, updates, faults=RARE_BREAKS)
        sections["broken"][name] = {"busy": _slowest_busy(broken), "breaks": broken.breaks}
        if latency:
            narrow = _run(stages, latency, updates, window_for=0.0)
            sections["narrow"][name] = {"busy": _slowest_busy(narrow)}
    for stages, latency in product(STAGES, UNKNOWN_LATENCIES):
        name = f"{stages} stages, latency {latency:g}"
        found = _run(stages, latency, updates, staleness=MEASURED)
        crossing = [op.crossing for op in found.stages[0][0].ops if isinstance(op, Speculate)]
        busy = _slowest_busy(found)
        sections["measured"][name] = {"busy": busy, "staleness": crossing[-1], "widest": max(crossing)}
        goals.append(Goal(f"busy, measured: {name}", busy, "", ">= 0.95"))
    return report("pipeline_sim", sections, goals, options.json)


def _run(
    stages: int,
    latency: float,
    updates: int,
    *,
    window_for: float | None = None,
    slower: int | None = None,
    faults: Faults | None = None,
    staleness: str = FIXED,
) -> Report:
    """A forward and a backward take one unit of time, on the stage `slower` 1.5 of them."""
    m = _m(stages, latency)
    ratio = latency if window_for is None else window_for
    taus = [staleness_for(s, stages, ratio, m) if staleness == FIXED else m for s in range(stages - 1)] + [0]
    times = [SLOWER if s == slower else 1.0 for s in range(stages)]
    cluster = SimCluster(
        tuple(SimStage(s, s + 1, taus[s], t, t) for s, t in enumerate(times)),
        updates_per_round=updates,
        latency_s=latency,
    )
    return simulate(Scenario((cluster,), m, updates, staleness, faults=faults or Faults()))


def _m(stages: int, latency: float) -> int:
    """The least number of micro-batches an update that is recommended: twice the first stage's staleness.

    Each link counts for a whole number of micro-batches.
    """
    return 2 * staleness_for(0, stages, math.ceil(latency))


def _slowest_busy(result: Report) -> float:
    return min(result.utilisation(0, s) for s in range(len(result.stages[0])))


def _synchronous(stages: int, latency: float) -> float:
    """1F1B that waits for each batch: the first forward's way to the end and back is the bubble."""
    m = _m(stages, latency)
    return 2 * m / (2 * m + 2 * (stages - 1) * (1 + latency))


if __name__ == "__main__":
    sys.exit(main())
