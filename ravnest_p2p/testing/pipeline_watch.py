"""An outsider's check of one stage: every rule of the asynchronous pipeline, asked after every event.

Problem: a scheduler tested against itself agrees with itself. Solution: this watch shares no code and no
counters with `core.pipeline.schedule`; it keeps sets of what it saw and states each rule in its own words, so
that a window off by one, a step at another index, or a lost micro-batch is named at the event that shows it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ravnest_p2p.core.pipeline.schedule import (
    Average,
    Backward,
    Forward,
    Op,
    Snapshot,
    Speculate,
    Step,
)


class InvariantViolation(AssertionError):
    """A rule of the pipeline does not hold; the message says which, where and when."""


@dataclass
class StageWatch:
    """Sees everything that one stage receives, starts and finishes.

    Args: as `StageSchedule`; `name` is for messages; `fixed`: every batch has the bound τ itself.
    """

    name: str
    stage: int
    stages: int
    tau: int
    m: int
    microbatches: int
    kappa: int
    rounds: int
    fixed: bool = True
    overlap: int = 0
    activations: set[int] = field(default_factory=set)
    gradients: set[int] = field(default_factory=set)
    forwarded: set[int] = field(default_factory=set)
    applied: set[int] = field(default_factory=set)
    scratch: dict[int, int] = field(default_factory=dict)
    steps: int = 0
    averaged: int = 0
    handed_over: dict[int, int] = field(default_factory=dict)
    running: Op | None = None
    computed_last: type[Op] | None = None

    def __post_init__(self) -> None:
        if self.stage == 0:
            self.activations = set(range(self.microbatches))

    def require(self, holds: bool, rule: str, op: object = "") -> None:
        if not holds:
            raise InvariantViolation(
                f"{self.name}: {rule} ({op or 'idle'}; {len(self.forwarded)} forwarded, "
                f"{len(self.applied)} applied, {self.steps} steps, {self.averaged} averaged)"
            )

    def started(self, op: Op) -> None:
        """An op begins; everything that it needs must be there, and nothing more urgent may wait."""
        self.require(self.running is None, "one op at a time", op)
        self.running = op
        if not isinstance(op, Step):
            self.require(not self.step_due, "the step comes before everything else", op)
        if not isinstance(op, Step | Average):
            self.require(not self.average_due, "compute pauses for the averaging", op)
        if not isinstance(op, Step | Average | Snapshot):
            self.require(not self.snapshot_due, "the weights are handed over at their update", op)
        if isinstance(op, Forward):
            self._forward(op)
        elif isinstance(op, Backward):
            self._backward(op)
        elif isinstance(op, Speculate):
            self._speculate(op)
        elif isinstance(op, Step):
            whole = set(range(op.u * self.m, (op.u + 1) * self.m))
            self.require(op.u == self.steps, "steps are in order", op)
            self.require(
                whole == self.applied - set(range(op.u * self.m)), "a step has exactly its batch", op
            )
        else:
            self.require(op.round == self.averaged, "rounds are in order", op)
            begin, end = self._round(op.round)
            if isinstance(op, Snapshot):
                self.require(self.steps == begin < end, "the snapshot is at its update", op)
                self.require(op.round not in self.handed_over, "one snapshot a round", op)
            else:
                self.require(self.steps == end, "the averaging is at its update", op)
                missed = begin < end and op.round not in self.handed_over
                self.require(not missed, "a mean is of a snapshot", op)

    def finished(self, op: Op) -> None:
        self.require(op == self.running, "what finishes was running", op)
        self.running = None
        if isinstance(op, Forward | Backward):
            self.computed_last = type(op)
        if isinstance(op, Forward):
            if self.stage == self.stages - 1:
                self.gradients.add(op.i)
        elif isinstance(op, Backward):
            self.applied.add(op.i)
        elif isinstance(op, Speculate):
            self.scratch[op.u] = op.crossing
        elif isinstance(op, Step):
            self.steps += 1
        elif isinstance(op, Snapshot):
            self.handed_over[op.round] = self.steps
        else:
            self.averaged += 1

    def idle(self) -> None:
        """The stage was offered the chance and started nothing: then nothing may have been possible."""
        if self.running is not None:
            return
        self.require(not self.step_due, "idle while a step was due")
        self.require(not self.average_due, "idle while an averaging was due")
        self.require(not self.snapshot_due, "idle while a snapshot was due")
        self.require(not (self.gradients - self.applied), "idle while a gradient waited")
        self.require(not self.forward_possible, "idle while an activation waited")

    def ended(self) -> None:
        """Nothing can happen any more."""
        everything = set(range(self.microbatches))
        self.require(self.forwarded == everything == self.applied, "deadlock, or micro-batches were lost")
        self.require(self.steps == self.microbatches // self.m, "every update is stepped")
        self.require(self.averaged == self.rounds, "every round is averaged")

    @property
    def step_due(self) -> bool:
        batch = range(self.steps * self.m, (self.steps + 1) * self.m)
        return batch.stop <= self.microbatches and self.applied.issuperset(batch)

    @property
    def forward_possible(self) -> bool:
        """An activation waits and the window is open; known for certain only where τ is always the bound."""
        window_open = self.fixed and len(self.forwarded) - len(self.applied) <= self.tau
        return window_open and bool(self.activations - self.forwarded)

    @property
    def average_due(self) -> bool:
        return self.averaged < self.rounds and self.steps == self._round(self.averaged)[1]

    @property
    def snapshot_due(self) -> bool:
        if self.averaged == self.rounds or self.averaged in self.handed_over:
            return False
        begin, end = self._round(self.averaged)
        return self.steps == begin < end

    def _round(self, number: int) -> tuple[int, int]:
        """Updates after which it begins, and after which its mean is there."""
        updates, begin = self.microbatches // self.m, (number + 1) * self.kappa
        return min(begin, updates), min(begin + self.overlap, updates)

    def _forward(self, op: Forward) -> None:
        u, k = divmod(op.i, self.m)
        tau = self.tau if self.fixed else self.scratch.get(u, 0)
        crossing = u > 0 and k < tau
        self.require(op.i in self.activations, "a forward has its input", op)
        backward_possible = bool(self.gradients - self.applied)
        after_backward = self.computed_last is Backward
        self.require(after_backward or not backward_possible, "a backward goes after a forward", op)
        self.require(op.i not in self.forwarded, "a micro-batch is forwarded once", op)
        self.require(op.i == len(self.forwarded), "forwards are in order", op)
        self.require(op.speculative == crossing, "crossing micro-batches, and only they, run on ŵ", op)
        self.require(op.version == max(0, op.i - tau) // self.m, "forward at the closed form", op)
        if crossing:
            self.require(u in self.scratch, "ŵ is built before it is used", op)
        else:
            self.require(self.steps == op.version, "the live weights have the version named", op)
        self.forwarded.add(op.i)
        in_flight = len(self.forwarded) - len(self.applied)
        self.require(in_flight <= self.tau + 1, f"{in_flight} in flight in a window of {self.tau + 1}", op)

    def _backward(self, op: Backward) -> None:
        after_backward = self.computed_last is Backward
        self.require(not (after_backward and self.forward_possible), "a forward goes after a backward", op)
        self.require(op.i in self.gradients, "a backward has its gradient", op)
        self.require(op.i in self.forwarded, "a backward follows its forward", op)
        self.require(op.i not in self.applied, "a micro-batch is applied once", op)
        self.require(op.i == len(self.applied), "backwards are in order", op)
        self.require(op.version == op.i // self.m, "applied at the closed form", op)
        self.require(self.steps == op.version, "accumulated for the next step to come", op)
        next_batch = self.steps + 1
        late = self.fixed and self.tau and next_batch * self.m < self.microbatches
        if late and len(self.applied) >= next_batch * self.m - self.tau:
            self.require(next_batch in self.scratch, "ŵ is built before backward um-τ", op)

    def _speculate(self, op: Speculate) -> None:
        self.require(self.tau > 0 and op.u > 0, "ŵ serves only crossing micro-batches", op)
        self.require(op.u * self.m < self.microbatches, "ŵ is built for a batch that exists", op)
        self.require(op.u not in self.scratch, "ŵ is built once", op)
        self.require(self.steps == op.u - 1, "ŵ is one step ahead of the live weights", op)
        done = len(self.applied) - (op.u - 1) * self.m
        self.require(op.crossing <= self.tau, "no more cross than the bound allows", op)
        self.require(op.crossing == self.tau or not self.fixed, "as many cross as the bound allows", op)
        self.require(done == self.m - op.crossing, f"ŵ is built at m-τ micro-batches, not at {done}", op)
