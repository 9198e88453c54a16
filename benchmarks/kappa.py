"""What does averaging seldom, and in few bytes, cost in quality? `python -m benchmarks.kappa --json`

Clusters train the char-GPT of `penalty_setting` side by side, each with AdamW and 8 samples an update, and
average by the product's rounds and codecs; the loss is that of the finished weights on text held out. Bytes
are those of the payloads that a cluster sends, scales and places included. Gaps are paired by seed: same
first weights, same samples in every update of all clusters together.

Sections:

* `sweep`: κ, the updates between two averagings, from 1 to 80 and adaptive (`core.kappa`), 2 and 4 clusters,
  against κ = 5, and against one cluster with batches as large as those of all together. The adaptive one has
  to take rounds away, not only their bytes.
* `overlap`: a mean is taken in some updates after its round began, as a difference (`training.late_mean`).
* `compression`: differences since the last round in each codec (`training.difference`) against exact ones.
* `outer`: what is done with the mean difference (`training.outer`).
* `staleness`, `planner`: what the paper leaves open (`kappa_questions`); for κ that is `sweep`.

An hour on one core. `--keep FOLDER` goes on where the last call stopped; `--svg FOLDER` draws what was found.
The settings of the adaptive κ and of the codecs were chosen with other seeds (100 and up).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from benchmarks import kappa_questions as questions
from benchmarks.common import Goal, report
from benchmarks.kappa_plots import draw
from benchmarks.kappa_runs import ADAPTIVE, SAMPLES, Outcome, Run, outcome
from ravnest_p2p.core import averaging, compression
from ravnest_p2p.core.averaging import AUTO, NESTEROV, SGD, chosen
from ravnest_p2p.training.difference import KEPT, sparse_outer
from ravnest_p2p.training.difference.sparse import SPARSE
from ravnest_p2p.training.outer import DILOCO

UPDATES, QUICK_UPDATES = 480, 40
DENSE = (compression.NONE, compression.FP16, compression.INT8, compression.INT4)
SEEDS = 3
CLUSTERS = (2, 4)
KAPPAS = (1, 5, 10, 20, 40, 80)
MEASURE = 5
"""κ that the adaptive one is held against."""

WITH_MOMENTUM = (5, 20)
"""κ at which the optimizers' mean gradients are averaged too."""

OVERLAPPED_KAPPAS = (10, 20)
COMPRESSED_KAPPA = 5
"""96 rounds."""

CODECS: dict[str, dict[str, Any]] = {
    **{name: {"codec": name} for name in DENSE},
    SPARSE: {"codec": SPARSE, "ahead": True, "decay": KEPT},
    "sparse, from the mean": {"codec": SPARSE},
}

AS_JOBS = chosen(AUTO, averaging.ADAPTIVE, averaging.NONE)
"""How jobs average whose κ is adaptive, where they leave it open."""

OUTER_KAPPA, OUTER_CLUSTERS = 20, 2
OUTERS = {
    "none": ("none", 1.0, 0.0),
    "SGD, lr 0.7": (SGD, 0.7, 0.0),
    "Nesterov, lr 0.7, momentum 0.3": (NESTEROV, 0.7, 0.3),
    "Nesterov, lr 0.7, momentum 0.9 (DiLoCo)": tuple(DILOCO),
}

Section = Callable[["Bench"], tuple[dict[str, Any], list[Goal]]]


class Bench:
    """Runs that the sections ask for.

    Args:
        keep: folder of finished runs.
    """

    def __init__(self, seeds: int, quick: bool, keep: Path | None) -> None:
        self.seeds, self.quick, self.keep = 1 if quick else seeds, quick, keep
        self.updates = QUICK_UPDATES if quick else UPDATES
        self._found: dict[Run, Outcome] = {}

    def runs(self, clusters: int, kappa: int, **other: Any) -> list[Outcome]:
        """One way of training, by seed."""
        return [self._outcome(Run(clusters, kappa, self.updates, s, **other)) for s in range(self.seeds)]

    def _outcome(self, run: Run) -> Outcome:
        if run not in self._found:
            self._found[run] = outcome(run, self.keep)
            print(f"{run}: {self._found[run]}", file=sys.stderr, flush=True)
        return self._found[run]


def _row(its: Sequence[Outcome], against: Sequence[Outcome]) -> dict[str, Any]:
    gaps = [100 * (a.held_out / b.held_out - 1) for a, b in zip(its, against, strict=True)]
    return {
        "loss": mean(one.held_out for one in its),
        "gap %": mean(gaps),
        "gaps %": [round(gap, 3) for gap in gaps],
        "standard error %": stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else 0.0,
        "updates": sum(its[0].kappas),
        "rounds": mean(len(one.kappas) for one in its),
        "MB sent": mean(one.sent for one in its) / 1e6,
    }


def _sweep(bench: Bench) -> tuple[dict[str, Any], list[Goal]]:
    rows: dict[str, Any] = {}
    goals: list[Goal] = []
    for clusters in CLUSTERS:
        five = bench.runs(clusters, MEASURE)
        single = bench.runs(1, bench.updates, samples=SAMPLES * clusters)
        found = {f"κ = {kappa}": bench.runs(clusters, kappa) for kappa in KAPPAS}
        found["κ adaptive"] = bench.runs(clusters, ADAPTIVE, codec=AS_JOBS)
        found["κ adaptive, float32"] = bench.runs(clusters, ADAPTIVE)
        for kappa in WITH_MOMENTUM:
            found[f"κ = {kappa}, momentum"] = bench.runs(clusters, kappa, momentum=True)
        found["κ adaptive, momentum"] = bench.runs(clusters, ADAPTIVE, codec=AS_JOBS, momentum=True)
        rows[f"{clusters} clusters: one, batches of all"] = _row(single, five)
        for name, its in found.items():
            row = rows[f"{clusters} clusters: {name}"] = _row(its, five)
            row["over one %"] = mean(
                100 * (a.held_out / b.held_out - 1) for a, b in zip(its, single, strict=True)
            )
        for name, its in found.items():
            row = rows[f"{clusters} clusters: {name}"]
            row["bytes of κ = 5"] = row["MB sent"] / rows[f"{clusters} clusters: κ = {MEASURE}"]["MB sent"]
            if "adaptive" in name:
                row["κ of seed 0"] = its[0].kappas
        adaptive = rows[f"{clusters} clusters: κ adaptive"]
        goals += [
            Goal(f"κ adaptive, {clusters} clusters: loss over κ = 5", adaptive["gap %"], "%", "<= 2"),
            Goal(
                f"κ adaptive, {clusters} clusters: bytes of κ = 5",
                adaptive["bytes of κ = 5"],
                "",
                "<= 0.3334",
            ),
            Goal(
                f"κ adaptive, {clusters} clusters: rounds of κ = 5",
                adaptive["rounds"] / rows[f"{clusters} clusters: κ = {MEASURE}"]["rounds"],
                "",
                "<= 0.5",
            ),
        ]
    return rows, goals


def _overlap(bench: Bench) -> tuple[dict[str, Any], list[Goal]]:
    rows: dict[str, Any] = {}
    for clusters in CLUSTERS:
        for kappa in OVERLAPPED_KAPPAS:
            stopped = bench.runs(clusters, kappa)
            for overlap in (0, 1, kappa // 2, kappa):
                its = bench.runs(clusters, kappa, overlap=overlap)
                rows[f"{clusters} clusters: κ = {kappa}, overlap {overlap}"] = _row(its, stopped)
    return rows, []


def _compression(bench: Bench) -> tuple[dict[str, Any], list[Goal]]:
    rows: dict[str, Any] = {}
    goals: list[Goal] = []
    for clusters in CLUSTERS:
        exact = bench.runs(clusters, COMPRESSED_KAPPA, codec=compression.NONE)
        for codec, settings in CODECS.items():
            outer = {"outer": tuple(sparse_outer(clusters))} if codec == SPARSE else {}
            its = bench.runs(clusters, COMPRESSED_KAPPA, **settings, **outer)
            row = rows[f"{clusters} clusters: {codec}"] = _row(its, exact)
            row["times fewer"] = exact[0].sent / its[0].sent
            if codec == SPARSE:
                goals += [
                    Goal(f"sparse, {clusters} clusters: times fewer bytes", row["times fewer"], "", ">= 100"),
                    Goal(f"sparse, {clusters} clusters: rounds", row["rounds"], "", ">= 30"),
                    Goal(f"sparse, {clusters} clusters: loss", row["gap %"], "%", "<= 1"),
                ]
            if codec == compression.INT8:
                goals.append(Goal(f"int8, {clusters} clusters: loss", row["gap %"], "%", "<= 0.1"))
    return rows, goals


def _outer(bench: Bench) -> tuple[dict[str, Any], list[Goal]]:
    plain = bench.runs(OUTER_CLUSTERS, OUTER_KAPPA, codec=compression.NONE)
    return {
        name: _row(bench.runs(OUTER_CLUSTERS, OUTER_KAPPA, codec=compression.NONE, outer=outer), plain)
        for name, outer in OUTERS.items()
    }, []


def _staleness(bench: Bench) -> tuple[dict[str, Any], list[Goal]]:
    return questions.staleness(bench.seeds, bench.quick, bench.keep), []


def _planner(bench: Bench) -> tuple[dict[str, Any], list[Goal]]:
    return questions.planner(bench.quick), []


SECTIONS: dict[str, Section] = {
    "sweep": _sweep,
    "overlap": _overlap,
    "compression": _compression,
    "outer": _outer,
    "staleness": _staleness,
    "planner": _planner,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kappa", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object for machines")
    parser.add_argument("--quick", action="store_true", help="a few updates of one seed; never for a claim")
    parser.add_argument("--section", nargs="+", choices=SECTIONS, help="default: all of them")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many (default: %(default)s)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="finished runs: read, and added to")
    parser.add_argument("--svg", type=Path, metavar="FOLDER", help="draw the sections there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    bench = Bench(options.seeds, options.quick, options.keep)
    results: dict[str, Any] = {}
    goals: list[Goal] = []
    for name in options.section or SECTIONS:
        results[name], reached = SECTIONS[name](bench)
        goals += reached
    if options.svg:
        draw(results, options.svg)
    return report("kappa", results, goals, options.json)


if __name__ == "__main__":
    sys.exit(main())
