"""Section `memory`: predicted bytes against what a stage in training really holds.

Every stage is trained as a worker trains it, by the schedule's own order of operations, with a full window,
ŵ, and an averaging after every update. Tensor bytes are counted by storage; saved tensors once more by
autograd's own hooks; resident size in a process of its own.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import Tensor

from benchmarks.common import Goal
from benchmarks.requirements_models import make, weightless
from benchmarks.ring_of_two import average
from ravnest_p2p.core.pipeline.schedule import Average, Backward, Forward, Speculate, StageSchedule
from ravnest_p2p.model import Package, Requirements, StageComputation, StageProgram, Terms, split_program
from ravnest_p2p.model import capture as capture_model
from ravnest_p2p.model.fitting import equal_peers, fit
from ravnest_p2p.model.footprint import StorageMeter, footprint
from ravnest_p2p.model.profile import stand_in
from ravnest_p2p.model.requirements import Need
from ravnest_p2p.training.stage import StageTrainer

NAMES = ("gpt2", "gpt2 tied", "llama", "resnet", "convnext", "lstm")
RESIDENT = ("gpt2 100M", "convnext 50M")
STAGES = 3
UPDATES = 2
TERMS = Terms()
SYNCHRONOUS = Terms(staleness_bound=0)


def section(quick: bool) -> tuple[dict[str, Any], list[Goal]]:
    """Rows by model and stage, and the goals."""
    rows: dict[str, Any] = {}
    for name in NAMES[:2] if quick else NAMES:
        rows |= _tensor_rows(name)
    worst = max(abs(row["peak_over_predicted"] - 1) for row in rows.values())
    saved = max(abs(row["saved_over_predicted"] - 1) for row in rows.values())
    goals = [
        Goal("tensor bytes of a stage in training, off the prediction", worst, "", "<= 0.02"),
        Goal("tensors saved by autograd, off the prediction", saved, "", "<= 0.02"),
    ]
    resident: dict[str, Any] = {}
    for name in RESIDENT[:1] if quick else RESIDENT:
        resident |= _resident(name)
    goals += [
        _most(resident, "resident_over_predicted", "resident size over the predicted tensor bytes", "<= 1.6"),
        _most(resident, "resident_over_needed", "resident size over what the planner reserves", "<= 1"),
        _most(resident, "part_of_whole", "a stage of 3 over one process, both synchronous", "<= 0.4"),
    ]
    return {"tensors": rows, "resident": resident}, goals


def _most(rows: dict[str, Any], column: str, name: str, goal: str) -> Goal:
    return Goal(name, max(row[column] for row in rows.values()), "", goal)


def train(stage: StageProgram, number: int, stages: int, staleness: int, first: int) -> None:
    """A few updates of one stage, its window always full, each averaged.

    Args:
        first: staleness of the first stage, which decides how long a carried parameter stays the same.
    """
    generator = torch.Generator().manual_seed(0)
    m = TERMS.microbatches_per_update
    weights = {n: stand_in(stage.tensor_spec(n), generator) for n in (*stage.params, *stage.buffers)}
    trainer = StageTrainer(
        StageComputation(stage),
        {n: weights.pop(n) for n in stage.params},
        {n: weights.pop(n).abs_() for n in stage.buffers},
        optimizer=TERMS.optimizer,
        microbatches_per_update=m,
        staleness=staleness,
        is_last=number == stages - 1,
    )
    data = {n: stand_in(stage.tensor_spec(n), generator) for n in stage.data_inputs}
    plan = StageSchedule(number, stages, staleness, m, m * UPDATES, updates_per_round=1)
    if number:
        for i in range(m * UPDATES):
            plan.activation_arrived(i)
    carried: tuple[object, dict[int, Tensor]] = (None, {})
    waiting = 0
    while not plan.done:
        op = plan.next()
        if op is None:
            plan.gradient_arrived(waiting)
            waiting += 1
            continue
        if isinstance(op, Forward):
            version = (op.i // m, op.i % m < first)
            if carried[0] != version:
                carried = version, {p: stand_in(stage.receives[p], generator) for p in stage.received_params}
            kept = carried[1]
            received = [
                kept[p] if p in kept else stand_in(s, generator) for p, s in enumerate(stage.receives)
            ]
            trainer.forward(op.i, received, data, op.i, speculative=op.speculative)
            del received, kept
        elif isinstance(op, Backward):
            last = number == stages - 1
            trainer.backward(op.i, [] if last else [stand_in(s, generator) for s in stage.sends])
        elif isinstance(op, Speculate):
            trainer.speculate()
        elif isinstance(op, Average):
            average(trainer)
        else:
            trainer.step()
        plan.finished(op)


def _tensor_rows(name: str) -> dict[str, Any]:
    package = _captured(name)
    rows = {}
    for stage, number, staleness, first, need in _stages(package, STAGES):
        predicted = need.peak_bytes
        meter = StorageMeter()
        with meter:
            train(stage, number, STAGES, staleness, first)
        rows[f"{name} {number}"] = {
            "staleness": staleness,
            "predicted_mb": predicted / 1e6,
            "tracked_mb": meter.peak_bytes / 1e6,
            "peak_over_predicted": meter.peak_bytes / predicted,
            "saved_over_predicted": _saved_ratio(stage),
        }
    return rows


def _stages(
    package: Package, stages: int, terms: Terms = TERMS
) -> Iterator[tuple[StageProgram, int, int, int, Need]]:
    needs = Requirements(package, terms)
    draft = fit(needs, equal_peers(stages))
    cuts = [lo for lo, _ in draft.ranges[1:]]
    for number, (stage, staleness) in enumerate(
        zip(split_program(package.program, cuts), draft.staleness, strict=True)
    ):
        yield (
            stage,
            number,
            staleness,
            draft.staleness[0],
            needs.need(stage.lo, stage.hi, stage=number, stages=stages, staleness=staleness, exact=True),
        )


def _saved_ratio(stage: StageProgram) -> float:
    """Bytes that autograd's hooks see, with what was received and sent, over the prediction."""
    generator = torch.Generator().manual_seed(0)
    params = {n: stand_in(stage.tensor_spec(n), generator).requires_grad_() for n in stage.params}
    buffers = {n: stand_in(stage.tensor_spec(n), generator).abs_() for n in stage.buffers}
    data = {n: stand_in(stage.tensor_spec(n), generator) for n in stage.data_inputs}
    received = [stand_in(s, generator).requires_grad_(s.differentiable) for s in stage.receives]
    outside = {_key(t) for t in (*params.values(), *buffers.values(), *data.values())}
    with _saved_bytes(outside) as seen:
        sent = StageComputation(stage, remake=False).forward(params, buffers, received, data, 0)
    for tensor in (*received, *sent):
        if _key(tensor) not in outside:
            seen[_key(tensor)] = tensor.untyped_storage().nbytes()
    return sum(seen.values()) / footprint(stage, remake=False).held_bytes


@contextmanager
def _saved_bytes(outside: set[int]) -> Iterator[dict[int, int]]:
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if _key(tensor) not in outside:
            seen[_key(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield seen


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _captured(name: str) -> Package:
    case = make(name)
    return capture_model(case.model, case.inputs, loss=case.loss, example_labels=case.labels)


def _resident(name: str) -> dict[str, Any]:
    """Resident size of each stage of 3, with a full window and synchronous, each in a fresh process."""
    whole = _in_process(name, 1, 0, "synchronous")["resident_mb"]
    rows = {}
    for number in range(STAGES):
        part = _in_process(name, STAGES, number, "synchronous")["resident_mb"]
        rows[f"{name} {number}"] = {
            **_in_process(name, STAGES, number, "full window"),
            "synchronous_mb": part,
            "one_process_mb": whole,
            "part_of_whole": part / whole,
        }
    return rows


def _in_process(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.requirements_memory", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def _child(name: str, stages: int, number: int, kind: str) -> dict[str, Any]:
    """Train one stage here and tell how the resident size grew over that of the imported libraries."""
    torch.set_num_threads(1)
    package = weightless(name)
    terms = SYNCHRONOUS if kind == "synchronous" else TERMS
    stage, _, staleness, first, need = list(_stages(package, stages, terms))[number]
    before = psutil.Process().memory_info().rss
    train(stage, number, stages, staleness, first)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "staleness": staleness,
        "predicted_mb": need.peak_bytes / 1e6,
        "resident_mb": (peak - before) / 1e6,
        "resident_over_predicted": (peak - before) / need.peak_bytes,
        "resident_over_needed": peak / need.memory.needed,
    }


if __name__ == "__main__":
    print(json.dumps(_child(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])))
