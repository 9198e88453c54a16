"""Real training in virtual time: the product's schedule, links and stage trainers, in one thread.

Problem: what asynchrony costs in quality has to be measured on the code that trains, but a real swarm takes
hours and its timing is not repeatable. Solution: every stage's `StageSchedule` orders a real `StageTrainer`;
operations and links take virtual time, arithmetic is done at the moment an operation ends. Which weights a
micro-batch meets follows from its index alone, so the result is that of a real swarm with these settings.
Clusters that average are `testing.averaged_sim`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

from torch import Tensor

from ravnest_p2p.core.pipeline.notes import NO_NOTE, Note
from ravnest_p2p.core.pipeline.schedule import (
    Average,
    Backward,
    Forward,
    Op,
    Snapshot,
    Speculate,
    StageSchedule,
    Step,
)
from ravnest_p2p.testing.clock import VirtualClock
from ravnest_p2p.testing.lossy_link import Faults, LossyLink
from ravnest_p2p.testing.pipeline_watch import InvariantViolation
from ravnest_p2p.training import StageTrainer

Data = Callable[[int], Mapping[str, Tensor]]
"""Fields of micro-batch i, by graph input name."""

Arrived = tuple[Sequence[Any], Note]
"""Activations or gradients, and what came along."""

Frame = tuple[int, Arrived]

_NOTHING: Arrived = ((), NO_NOTE)

Fed = Callable[[int], tuple[Mapping[str, Tensor], int]]
"""The same, and the seed of its random nodes."""

_FRAMES = 64
_COMPUTE_S: dict[type[Op], float] = {
    Forward: 1.0,
    Backward: 1.0,
    Speculate: 0.0,
    Step: 0.0,
    Snapshot: 0.0,
    Average: 0.0,
}


@dataclass
class Trained:
    """What a simulated training leaves.

    Attributes:
        losses: of each micro-batch, in order; NaN where it is left out.
        makespan_s: virtual; a forward and a backward take one second each.
    """

    losses: list[float] = field(default_factory=list)
    makespan_s: float = 0.0


@dataclass
class SimulatedStage:
    """One stage in virtual time.

    Attributes:
        meet: called at a snapshot or an averaging; whoever averages ends it by `met`.
    """

    schedule: StageSchedule
    trainer: StageTrainer
    fed: Fed
    clock: VirtualClock
    result: Trained
    meet: Callable[[Snapshot | Average], None] = lambda _: None
    onward: LossyLink[Frame] | None = None
    back: LossyLink[Frame] | None = None
    activations: dict[int, Arrived] = field(default_factory=dict)
    gradients: dict[int, Arrived] = field(default_factory=dict)

    def activation(self, frame: Frame) -> None:
        i, self.activations[i] = frame
        self.schedule.activation_arrived(i)
        self.advance()

    def gradient(self, frame: Frame) -> None:
        i, self.gradients[i] = frame
        self.schedule.gradient_arrived(i)
        self.advance()

    def advance(self) -> None:
        op = self.schedule.next()
        if op is not None:
            self.clock.after(_COMPUTE_S[type(op)], self._perform, op)

    def met(self, op: Snapshot | Average) -> None:
        self.schedule.finished(op)
        self.advance()

    def _perform(self, op: Op) -> None:
        if isinstance(op, Snapshot | Average):
            self.meet(op)
            return
        trainer = self.trainer
        send: Callable[[], None] = _nothing
        if isinstance(op, Forward):
            received, note = self.activations.pop(op.i, _NOTHING)
            data, seed = self.fed(op.i)
            found = trainer.forward(op.i, received, data, seed, speculative=op.speculative, note=note)
            if found.version != op.version:
                raise InvariantViolation(f"{op} ran on weights with {found.version} updates")
            if found.loss is not None:
                self.result.losses.append(found.loss)
            if self.onward is not None:
                send = partial(self.onward.send, (op.i, (found.outputs, found.note)))
        elif isinstance(op, Backward):
            gradients = trainer.backward(op.i, *self.gradients.pop(op.i, _NOTHING))
            if self.back is not None:
                send = partial(self.back.send, (op.i, (gradients, trainer.gradient_note)))
        elif isinstance(op, Speculate):
            trainer.speculate()
        else:
            trainer.step()
        self.schedule.finished(op)
        send()
        self.result.makespan_s = self.clock.now_s
        self.advance()


def _nothing() -> None:
    """Sends no frame."""


def train(
    trainers: Sequence[StageTrainer],
    data: Data,
    *,
    staleness: Sequence[int],
    microbatches_per_update: int,
    updates: int,
    latency_s: float = 0.0,
    faults: Faults | None = None,
    seed: int = 0,
) -> Trained:
    """Train one pipeline from its first micro-batch to its last step, without averaging.

    Args:
        trainers: of the stages in order, made with the same `staleness` and m.
        data: asked once by each stage for each micro-batch, in order.
        latency_s: of every link, one way.
        faults, seed: of every link.
    Raises:
        InvariantViolation: a stage ran on other weights than the schedule says, or did not finish.
    """
    clock, result = VirtualClock(), Trained()
    m, count = microbatches_per_update, len(trainers)
    schedules = [StageSchedule(s, count, tau, m, m * updates) for s, tau in enumerate(staleness)]
    stages = [
        SimulatedStage(schedule, trainer, lambda i: (data(i), i), clock, result)
        for schedule, trainer in zip(schedules, trainers, strict=True)
    ]
    link(stages, clock, latency_s, faults or Faults(), random.Random(seed))
    run(stages, clock)
    return result


def link(
    stages: Sequence[SimulatedStage],
    clock: VirtualClock,
    latency_s: float,
    faults: Faults,
    rng: random.Random,
) -> None:
    """Lay the links of one pipeline."""
    wire = (clock, rng, latency_s, faults, _FRAMES)
    for sender, receiver in pairwise(stages):
        sender.onward = LossyLink(*wire, receiver.activation)
        receiver.back = LossyLink(*wire, sender.gradient)


def run(stages: Sequence[SimulatedStage], clock: VirtualClock) -> None:
    """Let every stage go to its end.

    Raises:
        InvariantViolation: one did not finish.
    """
    for stage in stages:
        stage.advance()
    clock.run_until(math.inf)
    if not all(stage.schedule.done for stage in stages):
        raise InvariantViolation("a stage has nothing to do and is not done")
