"""What does training without a bubble cost in quality? `python -m benchmarks.async_penalty --json`

The product's schedule, model and training code train a char-GPT over a simulated transport; τ = 0 with the
same weights to start from, samples, m and optimizer is the measure. Micro-batches and their versions are
those of a real swarm, so no figure depends on the machine's speed. All sections take about an hour on one
core: `--section p4` and so on for a part of them, `--keep FOLDER` to go on where the last call stopped.

The goals are about the loss of the finished weights on text held out of training. It is what the user gets;
the losses seen while training (also listed, over the last tenth) are in part those of weights that were used
for one micro-batch and thrown away. A gap is paired by seed: the same first weights and samples on both
sides.

`--real` asks instead whether the simulation is to be believed: a real swarm of two clusters that average, and
the simulation of its job, shall give finished weights of the same loss. Six minutes of two cores.

Sections: `p4`, `p8`: 4 and 8 stages, 800 updates. `long`: 4 stages, 2,000 updates. `control`: applying each
gradient at once. `alternatives`: other treatments of staleness, and ŵ in full precision. `optimizers`: the
speculative step of the other four.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from benchmarks.common import Goal, report
from benchmarks.penalty_real import real
from benchmarks.penalty_runs import AT_ONCE, FULL, SYNCHRONOUS, Outcome, Run, outcome
from ravnest_p2p.core.pipeline.correction import NONE, SPECULATIVE, STASH

UPDATES, LONG_UPDATES, QUICK_UPDATES = 800, 2000, 40
SEEDS = 3
OTHERS = ("adam", "muon", "lamb", "sgd")

Section = Callable[["Bench"], tuple[dict[str, Any], list[Goal]]]


class Bench:
    """Runs that the sections ask for.

    Args:
        keep: folder of finished runs.
    """

    def __init__(self, seeds: int, quick: bool, keep: Path | None) -> None:
        self._seeds, self._quick, self._keep = seeds, quick, keep
        self._found: dict[Run, Outcome] = {}

    def row(self, way: str, stages: int, m: int, updates: int = UPDATES, **other: Any) -> dict[str, Any]:
        """One way of training against synchronous training, over all seeds."""
        updates = QUICK_UPDATES if self._quick else updates
        mine, theirs = [], []
        for seed in range(1 if self._quick else self._seeds):
            for runs, its in ((theirs, SYNCHRONOUS), (mine, way)):
                runs.append(self._outcome(Run(its, stages, m, updates, seed, **other)))
        gaps = [gap(a.held_out, b.held_out) for a, b in zip(mine, theirs, strict=True)]
        return {
            "gap %": mean(gaps),
            "gaps %": [round(g, 3) for g in gaps],
            "spread %": stdev(gaps) if len(gaps) > 1 else 0.0,
            "training gap %": mean(gap(a.training, b.training) for a, b in zip(mine, theirs, strict=True)),
            "loss": mean(a.held_out for a in mine),
            "synchronous": mean(b.held_out for b in theirs),
            "seconds": sum(a.seconds for a in mine),
        }

    def _outcome(self, run: Run) -> Outcome:
        if run not in self._found:
            self._found[run] = outcome(run, self._keep)
            print(f"{run}: {self._found[run]}", file=sys.stderr, flush=True)
        return self._found[run]


def gap(mine: float, synchronous: float) -> float:
    """By how much a loss is higher, percent."""
    return 100 * (mine / synchronous - 1)


def _p4(bench: Bench) -> tuple[dict[str, Any], list[Goal]]:
    row = bench.row(SPECULATIVE, 4, 8)
    return {"4 stages": row}, [Goal("4 stages, m = 8, 800 updates", row["gap %"], "%", "<= 1")]


def _long(bench: Bench) -> tuple[dict[str, Any], list[Goal]]:
    row = bench.row(SPECULATIVE, 4, 8, LONG_UPDATES)
    return {"2,000 updates": row}, [Goal("4 stages, m = 8, 2,000 updates", row["gap %"], "%", "<= 0.5")]


def _p8(bench: Bench) -> tuple[dict[str, Any], list[Goal]]:
    row = bench.row(SPECULATIVE, 8, 16)
    return {"8 stages": row}, [Goal("8 stages, m = 16, 800 updates", row["gap %"], "%", "<= 1")]


def _control(bench: Bench) -> tuple[dict[str, Any], list[Goal]]:
    rows = {f"{stages} stages": bench.row(AT_ONCE, stages, m) for stages, m in ((4, 8), (8, 16))}
    found = rows["8 stages"]["gap %"]
    return rows, [Goal("each gradient applied at once, 8 stages", found, "%", ">= 10")]


def _alternatives(bench: Bench) -> tuple[dict[str, Any], list[Goal]]:
    return {way: bench.row(way, 4, 8) for way in (SPECULATIVE, FULL, STASH, NONE)}, []


def _optimizers(bench: Bench) -> tuple[dict[str, Any], list[Goal]]:
    return {name: bench.row(SPECULATIVE, 4, 8, optimizer=name) for name in OTHERS}, []


SECTIONS: dict[str, Section] = {
    "p4": _p4,
    "long": _long,
    "p8": _p8,
    "control": _control,
    "alternatives": _alternatives,
    "optimizers": _optimizers,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.async_penalty", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object for machines")
    parser.add_argument("--quick", action="store_true", help="a few updates of one seed; never for a claim")
    parser.add_argument("--section", nargs="+", choices=SECTIONS, help="default: all of them")
    parser.add_argument("--real", action="store_true", help="a real swarm against the simulation of its job")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many (default: %(default)s)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="finished runs: read, and added to")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    bench = Bench(options.seeds, options.quick, options.keep)
    results: dict[str, Any] = {}
    goals: list[Goal] = []
    for name in options.section or ([] if options.real else SECTIONS):
        results[name], reached = SECTIONS[name](bench)
        goals += reached
    if options.real:
        results["real"], reached = real(options.quick)
        goals += reached
    return report("async_penalty", results, goals, options.json)


if __name__ == "__main__":
    sys.exit(main())
