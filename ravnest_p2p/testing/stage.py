"""One stage of a two-stage pipeline over the simulated network: the product's schedule, no arithmetic.

Problem: fencing is proven only when something flows that it must keep apart. Solution: a stage computes
nothing but keeps the books: which micro-batches went forward and back at which version, and which batches
its state contains. A frame's number is its micro-batch; it is sent again until the receiver says that it
has come.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ravnest_p2p.core.pipeline.schedule import Average, Backward, Forward, Op, StageSchedule, Step
from ravnest_p2p.core.types import Generation, JobPlan, PeerId

from .clock import VirtualClock
from .invariants import Invariants

MICROBATCHES_PER_UPDATE = 4
UPDATES_PER_ROUND = 2
RESEND_S = 2.0
COMPUTE_S = 0.5


class Frame(NamedTuple):
    """A micro-batch's activation on its way up or gradient on its way down."""

    generation: Generation
    number: int


class Receipt(NamedTuple):
    """All frames below this number have come."""

    generation: Generation
    expected: int


class Stage:
    """One worker's stage in one generation.

    Args:
        batches: that the restored state contains.
        send: sends a message to the other stage.
        save: keeps the state (batches contained) after a round.
    """

    def __init__(
        self,
        peer: PeerId,
        job: JobPlan,
        batches: tuple[int, ...],
        clock: VirtualClock,
        invariants: Invariants,
        send: Callable[[Frame | Receipt], None],
        save: Callable[[tuple[int, ...]], None],
    ) -> None:
        stages = job.clusters[0].stages
        self._number = next(number for number, stage in enumerate(stages) if stage.peer == peer)
        self._schedule = StageSchedule(
            stage=self._number,
            stages=len(stages),
            staleness=stages[self._number].staleness,
            microbatches_per_update=MICROBATCHES_PER_UPDATE,
            microbatches=MICROBATCHES_PER_UPDATE * 10_000,
            updates_per_round=UPDATES_PER_ROUND,
        )
        self._peer, self._job = peer, job
        self._batches = batches
        self._clock, self._invariants = clock, invariants
        self._send, self._save = send, save
        self._came = self._produced = self._confirmed = 0
        self._stopped = False
        self._next()
        self._send_again()

    def stop(self) -> None:
        """The generation is over: nothing that is still under way has any effect."""
        self._stopped = True

    def receive(self, message: Frame | Receipt) -> None:
        """A message of this generation has come."""
        if isinstance(message, Receipt):
            self._confirmed = max(self._confirmed, message.expected)
            return
        if message.number == self._came:
            self._came += 1
            if self._number == 0:
                self._schedule.gradient_arrived(message.number)
            else:
                self._schedule.activation_arrived(message.number)
            self._next()
        self._send(Receipt(self._job.generation, self._came))

    def _next(self) -> None:
        op = self._schedule.next()
        if op is not None:
            self._clock.after(COMPUTE_S, self._computed, op)

    def _computed(self, op: Op) -> None:
        if self._stopped:
            return
        if isinstance(op, Forward):
            staleness = self._schedule.staleness
            expected = max(0, op.i - staleness) // MICROBATCHES_PER_UPDATE
            self._invariants.versions(self._peer, f"forward {op.i}", op.version, expected)
        elif isinstance(op, Backward):
            version = op.i // MICROBATCHES_PER_UPDATE
            self._invariants.versions(self._peer, f"backward {op.i}", self._schedule.version, version)
        elif isinstance(op, Step):
            self._batches += (self._job.batches_done + op.u,)
            self._invariants.applied(self._peer, self._batches)
        elif isinstance(op, Average):
            self._save(self._batches)
        self._schedule.finished(op)
        if isinstance(op, Forward if self._number == 0 else Backward):
            self._produced += 1
            self._send(Frame(self._job.generation, op.i))
        self._next()

    def _send_again(self) -> None:
        if self._stopped:
            return
        for number in range(self._confirmed, self._produced):
            self._send(Frame(self._job.generation, number))
        self._clock.after(RESEND_S, self._send_again)
