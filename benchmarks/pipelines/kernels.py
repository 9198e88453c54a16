"""How much of a stage's computation is spent in torch's kernels? In one process, without any network.

`python -m benchmarks.pipelines.kernels SIZE M UPDATES`: both stages of the model train by the schedule, each
alone, under torch's profiler. Prints {"kernels": [share of each stage's time]}: that of its operations
(forwards, backwards, early steps and steps) in which some operator of torch runs. What the profiler itself
takes counts as ours, so the truth is higher.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import ravnest_p2p as rn
from benchmarks.pipelines import gpt
from benchmarks.pipelines.ours import SETTLING, Gpt
from ravnest_p2p.core.pipeline.schedule import Backward, Forward, Op, Speculate, StageSchedule
from ravnest_p2p.model import StageComputation, StageProgram, capture, split_program
from ravnest_p2p.training import StageTrainer


def main() -> None:
    size, m, updates = gpt.SIZES[sys.argv[1]], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    inputs, targets = gpt.text(size, 1)
    package = capture(Gpt(size), (inputs,), loss=gpt.loss, example_labels=(targets,), evaluation=False)
    shares = []
    for number, stage in enumerate(split_program(package.program, stages=2)):
        weights = {name: package.weights[name] for name in (*stage.params, *stage.buffers)}
        shares.append(_share(stage, number, weights, {"x0": inputs, "y0": targets}, m, updates))
    print(json.dumps({"kernels": shares}))


def _share(
    stage: StageProgram,
    number: int,
    weights: dict[str, Tensor],
    fields: dict[str, Tensor],
    m: int,
    updates: int,
) -> float:
    tau = 0 if stage.is_last else 1
    trainer = StageTrainer(
        StageComputation(stage, remake=False),
        {name: weights[name] for name in stage.params},
        {name: weights[name] for name in stage.buffers},
        optimizer=rn.AdamW(lr=gpt.LEARNING_RATE, weight_decay=gpt.WEIGHT_DECAY),
        microbatches_per_update=m,
        staleness=tau,
        is_last=stage.is_last,
    )
    data = {name: fields[name] for name in stage.data_inputs}
    received = [torch.randn(spec.shape) for spec in stage.receives]
    answers = () if stage.is_last else [torch.randn(spec.shape) * 1e-4 for spec in stage.sends]
    schedule = StageSchedule(number, 2, tau, m, m * (SETTLING + updates))

    def perform(op: Op) -> Any:
        match op:
            case Forward():
                return trainer.forward(op.i, received, data, op.i, speculative=op.speculative)
            case Backward():
                return trainer.backward(op.i, answers)
            case Speculate():
                return trainer.speculate(op.crossing)
        return trainer.step()

    _train(schedule, perform, SETTLING)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        seconds = _train(schedule, perform, SETTLING + updates)
    in_kernels_us = sum(e.self_cpu_time_total for e in profiled.key_averages() if "::" in e.key)
    return in_kernels_us / 1e6 / seconds


def _train(schedule: StageSchedule, perform: Callable[[Op], Any], version: int) -> float:
    """Go on until so many updates are made; returns the seconds of the operations."""
    seconds = 0.0
    while schedule.version < version:
        op = schedule.next()
        if op is None:
            arrived = schedule.activation_arrived if schedule.stage else schedule.gradient_arrived
            arrived(schedule.completed)
            continue
        begun_s = time.perf_counter()
        perform(op)
        seconds += time.perf_counter() - begun_s
        schedule.finished(op)
    return seconds


if __name__ == "__main__":
    main()
