"""How long does a captured step take, against the same step of the model itself?

Both run forward and backward in turns in one process. The ratio is that of the process's CPU time on one
thread, which is the wall time of a machine that does nothing else; wall times stand beside it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any, NamedTuple

import torch

from benchmarks.common import Goal
from benchmarks.zoo import ARCHITECTURES, Case, make
from ravnest_p2p.model import Package, StageComputation, capture, split_program

PAIRS, SECONDS = 15, 4.0


def run(only: tuple[str, ...], quick: bool) -> tuple[dict[str, Any], list[Goal]]:
    """Rows by architecture; goals: median and worst ratio of captured to eager."""
    torch.set_num_threads(1)
    rows: dict[str, Any] = {}
    for name in ARCHITECTURES:
        if only and name not in only:
            continue
        case = make(name)
        package = capture(
            case.model, case.inputs, loss=case.loss, example_labels=case.labels, evaluation=False
        )
        (stage,) = split_program(package.program, [])
        captured = captured_step(case, package, StageComputation(stage))
        rows[name] = compare(_eager(case), captured, quick)
    ratios = [row["ratio"] for row in rows.values()]
    return rows, [
        Goal("stage time against eager, median", median(ratios), "times", "<= 1.05"),
        Goal("stage time against eager, worst", max(ratios), "times", "<= 1.10"),
    ]


def compare(eager: Callable[[], Any], captured: Callable[[], Any], quick: bool = False) -> dict[str, Any]:
    """Times of both in turns: medians, and median and quartiles of the ratio within a pair."""
    for _ in range(3):
        eager(), captured()
    pairs: list[tuple[Times, Times]] = []
    began = time.perf_counter()
    fewest, limit = (5, 0.5) if quick else (PAIRS, SECONDS)
    while len(pairs) < fewest or time.perf_counter() - began < limit:
        if len(pairs) % 2:
            second = _times(captured)
            pairs.append((_times(eager), second))
        else:
            pairs.append((_times(eager), _times(captured)))
    ratios = sorted(b.cpu_s / a.cpu_s for a, b in pairs)
    return {
        "eager_cpu_s": median(a.cpu_s for a, _ in pairs),
        "captured_cpu_s": median(b.cpu_s for _, b in pairs),
        "eager_wall_s": median(a.wall_s for a, _ in pairs),
        "captured_wall_s": median(b.wall_s for _, b in pairs),
        "ratio": median(ratios),
        "quartiles": [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]],
        "pairs": len(pairs),
    }


class Times(NamedTuple):
    """Of one run of one side."""

    cpu_s: float
    wall_s: float


def _times(step: Callable[[], Any]) -> Times:
    cpu, wall = time.process_time(), time.perf_counter()
    step()
    return Times(time.process_time() - cpu, time.perf_counter() - wall)


def _eager(case: Case) -> Callable[[], Any]:
    own = replace(case, model=copy.deepcopy(case.model).train())
    trained = [p for p in own.named("parameters").values() if p.requires_grad]
    return lambda: torch.autograd.grad(own.run(), trained, allow_unused=True)


def captured_step(case: Case, package: Package, computation: StageComputation) -> Callable[[], Any]:
    """A step, forward and backward, of the whole model as one stage; returns its gradients."""
    stage = computation.stage
    params = {n: package.weights[n].clone().requires_grad_() for n in stage.params}
    buffers = {n: package.weights[n].clone() for n in stage.buffers}
    trained, data = list(params.values()), case.fields()

    def step() -> Any:
        (loss,) = computation.forward(params, buffers, (), data, 0)
        return torch.autograd.grad(loss, trained, allow_unused=True)

    return step
