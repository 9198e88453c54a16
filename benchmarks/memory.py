"""What asynchronous training takes of a peer's memory: `python -m benchmarks.memory --json`, two minutes.

Tensor bytes are counted by storage, on stages that train as a worker trains them: in the schedule's order,
the window always full. No resident sizes, so the figures are the same on every machine.

Sections: `correction`: bytes that each treatment of staleness keeps, and takes for a moment, against the
optimizer's state. `window`: activations of each stage against τ + 1 micro-batches of one. `cluster`: three
stages that average, against plain PyTorch, which holds the whole model and averages with nobody: equal
stages, with activations kept, in part made again, and computed again; and what the planner makes of three
peers that lend 39 % of what plain PyTorch takes, the job's settings being those by default.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Goal, report
from benchmarks.llm_shapes import Gpt2, Gpt2Shape, next_token_loss
from benchmarks.ring_of_two import average
from ravnest_p2p.core.pipeline.correction import CORRECTIONS, NONE, SPECULATIVE, STASH
from ravnest_p2p.core.pipeline.schedule import Backward, Forward, Op, Speculate, StageSchedule, Step
from ravnest_p2p.core.planning.cost import stretches_of
from ravnest_p2p.core.planning.cuts import LayerTable
from ravnest_p2p.core.planning.memory import PROCESS_OVERHEAD_BYTES
from ravnest_p2p.model import (
    Package,
    Requirements,
    StageComputation,
    StageProgram,
    Terms,
    capture,
    split_program,
)
from ravnest_p2p.model.fitting import a_peer, cuts_of, equal_peers, fit
from ravnest_p2p.model.footprint import StorageMeter, footprint
from ravnest_p2p.model.profile import stand_in
from ravnest_p2p.training.stage import StageTrainer

STAGES = 3
UPDATES = 3
TERMS = Terms()
M = TERMS.microbatches_per_update
FULL = "speculative, float32"
SHAPE, QUICK_SHAPE = Gpt2Shape(512, 128, 384, 6, 12, False), Gpt2Shape(512, 64, 96, 4, 6, False)
BATCH = 2
SHARE, RESIDENT = 0.39, 1.6
"""Of plain PyTorch's bytes, what each of three peers lends: plans count up to 3 % less than is taken; and
resident size over tensors, as plans count it."""
SECTIONS = ("correction", "window", "cluster")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object for machines")
    parser.add_argument("--quick", action="store_true", help="a smaller model; never for a claim")
    parser.add_argument("--section", nargs="+", choices=SECTIONS, default=SECTIONS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    package = _package(QUICK_SHAPE if options.quick else SHAPE)
    draft = fit(Requirements(package, TERMS), equal_peers(STAGES))
    stages, taus = split_program(package.program, cuts_of(draft)), list(draft.staleness)
    results: dict[str, Any] = {}
    goals: list[Goal] = []
    for name in options.section:
        if name == "correction":
            results[name], reached = _corrections(stages[0], taus[0])
        elif name == "window":
            results[name], reached = _window(stages, taus)
        else:
            results[name], reached = _cluster(package, stages, taus)
        goals += reached
    return report("memory", results, goals, options.json)


def _package(shape: Gpt2Shape) -> Package:
    torch.manual_seed(0)
    tokens = torch.randint(shape.vocabulary, (BATCH, shape.context))
    return capture(Gpt2(shape), (tokens,), loss=next_token_loss, example_labels=(tokens.roll(-1, 1),))


class Driven:
    """One stage in training, alone: it is given what its neighbours would send.

    Args:
        averages: every update is averaged, in a ring of two.
        recompute, remake: as of `StageComputation`.
    Attributes:
        outside: tensors that are there before any operation.
    """

    def __init__(
        self,
        stage: StageProgram,
        tau: int,
        way: str = SPECULATIVE,
        *,
        averages: bool = False,
        recompute: Sequence[int] | None = None,
        remake: bool = True,
    ) -> None:
        self._stage = stage
        self._generator = torch.Generator().manual_seed(0)
        params, buffers, self._data = (
            {name: stand_in(stage.tensor_spec(name), self._generator) for name in names}
            for names in (stage.params, stage.buffers, stage.data_inputs)
        )
        self.outside: list[Tensor] = [*params.values(), *buffers.values(), *self._data.values()]
        self.trainer = StageTrainer(
            StageComputation(stage, recompute=recompute, remake=remake and way != NONE),
            params,
            buffers,
            optimizer=TERMS.optimizer,
            microbatches_per_update=M,
            staleness=tau,
            is_last=stage.is_last,
            correction=SPECULATIVE if way == FULL else way,
            halve=way != FULL,
        )
        before, after = not stage.is_first, not stage.is_last
        self._plan = StageSchedule(int(before), 1 + before + after, tau, M, UPDATES * M, int(averages))

    def operations(self) -> Iterator[tuple[Op, bool]]:
        """Every operation in the schedule's order, once before (True) and once after it is done."""
        plan, answered = self._plan, 0
        if not self._stage.is_first:
            for i in range(UPDATES * M):
                plan.activation_arrived(i)
        while not plan.done:
            op = plan.next()
            if op is None:
                plan.gradient_arrived(answered)
                answered += 1
                continue
            yield op, True
            self._perform(op)
            plan.finished(op)
            yield op, False

    def _perform(self, op: Op) -> None:
        trainer, stage = self.trainer, self._stage
        if isinstance(op, Forward):
            received = [stand_in(spec, self._generator) for spec in stage.receives]
            trainer.forward(op.i, received, self._data, op.i, speculative=op.speculative)
        elif isinstance(op, Backward):
            sent = () if stage.is_last else stage.sends
            trainer.backward(op.i, [stand_in(spec, self._generator) for spec in sent])
        elif isinstance(op, Speculate):
            trainer.speculate()
        elif isinstance(op, Step):
            trainer.step()
        else:
            average(trainer)


def _corrections(stage: StageProgram, tau: int) -> tuple[dict[str, Any], list[Goal]]:
    rows = {way: _correction(stage, tau, way) for way in (*CORRECTIONS, FULL)}
    mine = rows[SPECULATIVE]
    return rows, [
        Goal("kept for the correction, of AdamW's state", mine["kept, of the state"], "", "<= 0.25"),
        Goal(
            "kept and taken while it is made, of AdamW's state",
            mine["while made, of the state"],
            "",
            "<= 0.5",
        ),
        Goal(
            "peak of the stage, over that with stashing", mine["peak MB"] / rows[STASH]["peak MB"], "", "<= 1"
        ),
    ]


def _correction(stage: StageProgram, tau: int, way: str) -> dict[str, Any]:
    """Of the last update, when the optimizer's state is there."""
    driven = Driven(stage, tau, way)
    meter = StorageMeter(driven.outside)
    kept = made = crossing = live = peak = before = 0
    with meter:
        for op, begin in driven.operations():
            if begin:
                before = meter.peak_bytes = meter.bytes
                continue
            peak, most = max(peak, meter.peak_bytes), meter.peak_bytes - before
            if isinstance(op, Speculate):
                kept, made = meter.bytes - before, most
            elif isinstance(op, Backward) and op.i >= M:
                early = op.i % M < tau
                live, crossing = (live, max(crossing, most)) if early else (max(live, most), crossing)
    trainer = driven.trainer
    state = sum(t.nbytes for slots in trainer.optimizer_state().values() for t in slots.values())
    return {
        "state MB": state / 1e6,
        "kept MB": kept / 1e6,
        "kept, of the state": kept / state,
        "while made, of the state": made / state,
        "backward MB": live / 1e6,
        "crossing backward MB": crossing / 1e6,
        "peak MB": (peak + trainer.param_bytes) / 1e6,
    }


def _window(stages: Sequence[StageProgram], taus: Sequence[int]) -> tuple[dict[str, Any], list[Goal]]:
    """What the micro-batches in flight hold, against as many as the window allows, each as predicted."""
    rows: dict[str, Any] = {}
    for number, (stage, tau) in enumerate(zip(stages, taus, strict=True)):
        one = footprint(stage).held_bytes
        live, crossing, in_flight = _held(stage, tau)
        rows[f"stage {number}"] = {
            "window": tau + 1,
            "most in flight": in_flight,
            "predicted MB": one / 1e6,
            "live MB": live / 1e6,
            "crossing MB": crossing / 1e6,
            "of the bound": in_flight * max(live, crossing) / ((tau + 1) * one),
        }
    worst = max(row["of the bound"] for row in rows.values())
    return rows, [Goal("activations in flight, of the window's bound", worst, "", "<= 1")]


def _held(stage: StageProgram, tau: int) -> tuple[int, int, int]:
    """Most bytes that one forward leaves, live and crossing, and most micro-batches in flight."""
    driven = Driven(stage, tau)
    meter = StorageMeter(driven.outside)
    live = crossing = in_flight = before = 0
    with meter:
        for op, begin in driven.operations():
            if begin:
                before = meter.bytes
            elif isinstance(op, Forward):
                left, in_flight = meter.bytes - before, max(in_flight, driven.trainer.in_flight)
                live, crossing = (
                    (live, max(crossing, left)) if op.speculative else (max(live, left), crossing)
                )
    return live, crossing, in_flight


def _cluster(
    package: Package, stages: Sequence[StageProgram], taus: Sequence[int]
) -> tuple[dict[str, Any], list[Goal]]:
    needs = Requirements(package, TERMS)
    starts = stretches_of(TERMS.job(needs.layers), LayerTable(needs.layers)).starts
    (whole,) = split_program(package.program, [])
    plain = _plain(whole)
    rows = {"plain PyTorch": _share(plain, plain), "one peer": _share(_peak(whole, 0, None, False), plain)}
    ways = {"kept": (None, False), "remade": (None, True), "recomputed": (starts, False)}
    for way, (recompute, remake) in ways.items():
        for stage, tau in zip(stages, taus, strict=True):
            rows[f"layers {stage.lo}-{stage.hi}, {way}"] = _share(_peak(stage, tau, recompute, remake), plain)
    equal, lent = fit(needs, equal_peers(STAGES)), PROCESS_OVERHEAD_BYTES + int(RESIDENT * SHARE * plain)
    draft = fit(needs, [a_peer(f"peer {n}", memory_bytes=lent) for n in range(STAGES)])
    largest = 0
    planned = split_program(package.program, cuts_of(draft))
    for stage, tau, again in zip(planned, draft.staleness, draft.recompute, strict=True):
        found = _peak(stage, tau, starts if again else None, True)
        largest = max(largest, found)
        way = "recomputed" if again else "remade"
        rows[f"planned: layers {stage.lo}-{stage.hi}, {way}"] = _share(found, plain)
    slower = draft.interval_s / equal.interval_s
    return rows, [
        Goal(
            "largest of 3 stages where each peer lends 39 %, of plain PyTorch", largest / plain, "", "<= 0.4"
        ),
        Goal("time for a micro-batch there, of equal stages with ample memory", slower, "", "<= 1.25"),
    ]


def _share(found: int, plain: int) -> dict[str, Any]:
    return {"peak MB": found / 1e6, "of plain PyTorch": found / plain}


def _peak(stage: StageProgram, tau: int, recompute: Sequence[int] | None, remake: bool) -> int:
    with StorageMeter() as meter:
        for _ in Driven(stage, tau, averages=True, recompute=recompute, remake=remake).operations():
            pass
    return meter.peak_bytes


def _plain(stage: StageProgram) -> int:
    """Whole updates of accumulated micro-batches in an ordinary loop, without a copy for averaging."""
    computation = StageComputation(stage, remake=False)
    generator = torch.Generator().manual_seed(0)
    with StorageMeter() as meter:
        params = {n: stand_in(stage.tensor_spec(n), generator).requires_grad_() for n in stage.params}
        buffers = {n: stand_in(stage.tensor_spec(n), generator) for n in stage.buffers}
        data = {n: stand_in(stage.tensor_spec(n), generator) for n in stage.data_inputs}
        optimizer = torch.optim.AdamW(params.values())
        for _ in range(2):
            for i in range(M):
                (computation.forward(params, buffers, (), data, i)[0] / M).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return meter.peak_bytes


if __name__ == "__main__":
    sys.exit(main())
