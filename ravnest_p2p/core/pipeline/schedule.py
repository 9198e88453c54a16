"""What one stage of an asynchronous pipeline computes next, with neither bubbles nor a guess.

Problem: a pipeline that waits for every batch to drain idles most of its peers; one that never waits lets
updates slip between a micro-batch's forward and its backward by whatever the network's timing happens to be,
and trains worse in a way that nobody can reproduce. Solution: every boundary is a micro-batch index, never a
wall clock. A stage keeps a window of K = τ+1 micro-batches in flight; its optimizer steps after each m of
them; and what it forwards before an update that the micro-batch will belong to is complete runs on ŵ, the
optimizer's own next step computed early. So the versions of micro-batch i are known before training starts,

    forwarded at version max(0, i-τ) // m,     applied to version i // m     (`closed_form`),

and a real run's trace must equal them. Three stages, m = 4, no latency, so τ = 2, 1, 0; time runs to the
right, one column for one micro-batch's forward or backward (digits: its index):

    stage 0   F0  F1  F2  .   .   B0  F3  B1  ^f4 B2  f5  B3  |F6 B4  F7  B5  ^f8 B6  f9  B7
    stage 1   .   F0  F1  .   B0  F2  B1  F3  B2  ^f4 B3  |F5 B4  F6  B5  F7  B6  ^f8 B7  |F9
    stage 2   .   .   F0  B0  F1  B1  F2  B2  F3  B3  |F4 B4  F5  B5  F6  B6  F7  B7  |F8 B8

    F  forward on the live weights      ^  Speculate: build ŵ for the next batch, m-τ of this one being done
    f  forward (and later backward)     |  Step: the optimizer's update; every κ of them an averaging
       on ŵ: a crossing micro-batch        follows, through which the crossing ones stay in flight

An averaging may go on beside training: after update κ the weights are handed over (Snapshot), and after a
given number of further updates its mean is taken in (Average), which waits where the mean is not there yet.

In steady state no stage is ever idle. ŵ of batch u serves micro-batches um … um+τ-1 until their backwards are
done; with m ≥ 2τ that is before the next ŵ is built, with m < 2τ two of them live at once.

Links do not stay as they were planned, so τ may be another for each batch, up to a bound
(`core.pipeline.window` measures what it should be). A batch's τ is fixed at the last moment, when no more
than τ micro-batches of the batch before are missing; the rules above hold with the batch's own τ.

The stage's whole state is how many ops of each kind are done, which of forward and backward was last, and how
many messages have arrived; the policy is one ordered expression over these (`StageSchedule.next`).

Source: docs/design, "Asynchronous training that loses nothing".
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Union

from ravnest_p2p.core.errors import MicrobatchOrderError, OurFault


@dataclass(frozen=True, slots=True)
class Forward:
    """Run micro-batch i forward; on ŵ of batch i // m where `speculative`, else on the live weights."""

    i: int
    version: int
    speculative: bool

    def __str__(self) -> str:
        return f"{self.version}{'f' if self.speculative else 'F'}{self.i}"


@dataclass(frozen=True, slots=True)
class Backward:
    """Run micro-batch i backward through the weights of its forward, into the gradient of batch `version`."""

    i: int
    version: int

    def __str__(self) -> str:
        return f"{self.version}B{self.i}"


@dataclass(frozen=True, slots=True)
class Speculate:
    """Build ŵ for the first `crossing` micro-batches of batch u, the same number of batch u-1 missing."""

    u: int
    crossing: int

    def __str__(self) -> str:
        return f"^{self.u}"


@dataclass(frozen=True, slots=True)
class Step:
    """Apply batch u, all of its m micro-batches being accumulated: the live version becomes u+1."""

    u: int

    def __str__(self) -> str:
        return f"|{self.u}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Hand the weights to an averaging that goes on beside training."""

    round: int

    def __str__(self) -> str:
        return f"S{self.round}"


@dataclass(frozen=True, slots=True)
class Average:
    """Take the mean with the other clusters in; compute pauses until it is there, messages keep flowing.

    Where no Snapshot of the round was made, the averaging begins only here.
    """

    round: int

    def __str__(self) -> str:
        return f"A{self.round}"


Op = Union[Forward, Backward, Speculate, Step, Snapshot, Average]  # noqa: UP007 (isinstance over it needs Union on 3.10)


class Versions(NamedTuple):
    """Updates in the weights at a micro-batch's forward, and before the one that applies it."""

    forward: int
    backward: int


def closed_form(i: int, staleness: int, microbatches_per_update: int) -> Versions:
    """Versions of micro-batch `i`, of a batch with this staleness: what any run's trace must equal."""
    m = microbatches_per_update
    return Versions(max(0, i - staleness) // m, i // m)


def staleness_for(stage: int, stages: int, latency_ratio: float, limit: int | None = None) -> int:
    """Staleness τ with which this stage never idles: (1+ℓ)(P-1-s), rounded up, within `limit`.

    Args:
        latency_ratio: ℓ, one way of a link in units of one micro-batch's forward or backward time.
        limit: highest τ allowed: the smaller of m (more has no meaning) and the job's staleness bound.
    """
    wanted = math.ceil((1 + latency_ratio) * (stages - 1 - stage) - 1e-9)
    return wanted if limit is None else min(wanted, limit)


def timetable(ops: Iterable[Op]) -> str:
    """One stage's ops as text, each with the version before it: "0F3 0B2 ^1 0f4 0B3 |0 1F5"."""
    return " ".join(map(str, ops))


@dataclass(slots=True, eq=False)
class StageSchedule:
    """Decides what one compute thread of one stage does next; all effects are the caller's.

    Tell it what arrived and what finished, ask `next` after each. At most one op is outstanding. Call
    `finished` before anything that the op produced leaves this peer, so that no answer overtakes it.

    Args:
        stage, stages: s and P; stage 0 reads its inputs itself, stage P-1 computes the loss.
        staleness: the bound on τ of this stage.
        microbatches_per_update: m.
        microbatches: local ones in this generation, a multiple of m.
        updates_per_round: κ of this cluster; 0 never averages.
        rounds: averagings in this generation where that is more than this cluster's own updates need, because
            other clusters train on in the last round.
        upstream_staleness: that of the stage before; an activation ahead of its widest window is refused.
        overlap: updates between a Snapshot and its Average, 0 to κ; with 0 there is no Snapshot.

    Attributes:
        wanted: τ of batches that are not fixed yet, 0 to `staleness`; the owner may change it at any time.
    Raises:
        OurFault: numbers that make no pipeline; `finished` of an op that was not handed out.
    """

    stage: int
    stages: int
    staleness: int
    microbatches_per_update: int
    microbatches: int
    updates_per_round: int = 0
    rounds: int | None = None
    upstream_staleness: int | None = None
    overlap: int = 0
    wanted: int = field(init=False)
    _of_batch: dict[int, int] = field(init=False, repr=False)
    _done: dict[type[Op], int] = field(init=False, repr=False)
    _activations: int = field(default=0, init=False, repr=False)
    _gradients: int = field(default=0, init=False, repr=False)
    _speculated: int = field(default=0, init=False, repr=False)
    _begun: int = field(default=0, init=False, repr=False)
    _running: Op | None = field(default=None, init=False, repr=False)
    _backward_was_last: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        m, own_rounds = self.microbatches_per_update, 0
        if not 0 <= self.stage < self.stages:
            raise OurFault(f"stage {self.stage} of {self.stages} stages")
        if m < 1 or self.microbatches < 0 or self.microbatches % m:
            raise OurFault(f"{self.microbatches} micro-batches are not whole updates of {m}")
        if not 0 <= self.staleness <= m:
            raise OurFault(f"staleness {self.staleness} is outside 0..{m}, the micro-batches of an update")
        if self.updates_per_round:
            own_rounds = -(-self.updates // self.updates_per_round)
        if self.rounds is None:
            self.rounds = own_rounds
        if (
            self.updates_per_round < 0
            or self.rounds < own_rounds
            or (self.rounds and not self.updates_per_round)
        ):
            raise OurFault(f"{self.rounds} rounds of {self.updates_per_round} for {self.updates} updates")
        if not 0 <= self.overlap <= self.updates_per_round:
            raise OurFault(f"a round that overlaps {self.overlap} updates of {self.updates_per_round}")
        self.wanted = self.staleness
        self._of_batch = {}
        self._done = dict.fromkeys((Forward, Backward, Speculate, Step, Snapshot, Average), 0)
        if self.stage == 0:
            self._activations = self.microbatches

    @property
    def updates(self) -> int:
        """Local updates of the generation."""
        return self.microbatches // self.microbatches_per_update

    @property
    def version(self) -> int:
        """Updates applied so far."""
        return self._done[Step]

    @property
    def completed(self) -> int:
        """Micro-batches whose backward is done."""
        return self._done[Backward]

    @property
    def in_flight(self) -> int:
        """Micro-batches forwarded whose backward is not done; never more than τ+1."""
        return self._done[Forward] - self._done[Backward]

    @property
    def done(self) -> bool:
        """Every update is applied and every round averaged."""
        return self.version == self.updates and self._done[Average] == self.rounds

    def activation_arrived(self, i: int) -> None:
        """Micro-batch `i` came from the stage before.

        Raises:
            MicrobatchOrderError: repeated, out of order, out of range, or ahead of the sender's window.
        """
        if self.stage == 0:
            raise MicrobatchOrderError(f"activation {i} at the first stage, which reads its own inputs")
        ahead = self.microbatches if self.upstream_staleness is None else self.upstream_staleness
        self._expect("activation", i, self._activations, min(self.microbatches, self.completed + ahead + 1))
        self._activations += 1

    def gradient_arrived(self, i: int) -> None:
        """The gradient of micro-batch `i` came back from the stage after.

        Raises:
            MicrobatchOrderError: repeated, out of order, or for what was never sent.
        """
        if self._is_last:
            raise MicrobatchOrderError(f"gradient {i} at the last stage, which computes its own")
        self._expect("gradient", i, self._gradients, self._done[Forward])
        self._gradients += 1

    def finished(self, op: Op) -> None:
        """The op that `next` handed out is computed, and what it changed is in place."""
        if op != self._running:
            raise OurFault(f"stage {self.stage} finished {op}, while {self._running} was running")
        self._running = None
        self._done[type(op)] += 1
        if isinstance(op, Forward | Backward):
            self._backward_was_last = isinstance(op, Backward)
        if self._is_last and isinstance(op, Forward):
            self._gradients += 1
        if isinstance(op, Speculate):
            self._speculated = op.u
        if isinstance(op, Snapshot):
            self._begun = op.round + 1

    def next(self) -> Op | None:
        """The op to start now; None while one is running or nothing can be done before the next event."""
        if self._running is not None:
            return None
        self._fix_staleness()
        self._running = (
            self._step()
            or self._average()
            or self._snapshot()
            or self._speculate()
            or self._forward_in_turn()
            or self._backward()
            or self._forward()
        )
        return self._running

    def staleness_of(self, batch: int) -> int:
        """τ of the batch that is being trained, or of the next; until it is fixed, what it would be now."""
        return self._of_batch.get(batch, self.wanted)

    def _fix_staleness(self) -> None:
        """Fix τ of the next batch once its ŵ is due. No version depends on that of the first batch."""
        u = self.version + 1
        missing = u * self.microbatches_per_update - self.completed
        if self.wanted >= missing:
            self._of_batch.setdefault(u, missing)
        self._of_batch.pop(u - 2, None)

    def _step(self) -> Step | None:
        u = self._done[Step]
        return Step(u) if self.completed == (u + 1) * self.microbatches_per_update else None

    def _average(self) -> Average | None:
        number = self._done[Average]
        until = min((number + 1) * self.updates_per_round + self.overlap, self.updates)
        return Average(number) if number < self._rounds_due and self.version >= until else None

    def _snapshot(self) -> Snapshot | None:
        """Of a round that is not begun, and whose mean is not due yet."""
        number = self._done[Average]
        return Snapshot(number) if self._begun == number < self._rounds_due else None

    @property
    def _rounds_due(self) -> int:
        """Rounds for which the updates are made."""
        if not self.rounds:
            return 0
        return self.rounds if self.version == self.updates else self.version // self.updates_per_round

    def _speculate(self) -> Speculate | None:
        u = self.version + 1
        crossing = self._of_batch.get(u, 0)
        due = self.completed == u * self.microbatches_per_update - crossing
        return Speculate(u, crossing) if due and crossing and self._speculated < u < self.updates else None

    def _forward_in_turn(self) -> Forward | None:
        """Where gradients come in a bunch, backwards one after the other would starve the stage after."""
        return self._forward() if self._backward_was_last else None

    def _backward(self) -> Backward | None:
        i = self._done[Backward]
        return Backward(i, i // self.microbatches_per_update) if i < self._gradients else None

    def _forward(self) -> Forward | None:
        """The window also keeps the crossing rule.

        i ≤ completed+τ means that ŵ is built for a crossing micro-batch, and its update applied for another.
        """
        i = self._done[Forward]
        staleness = self.staleness_of(i // self.microbatches_per_update)
        if i >= self._activations or i > self.completed + staleness:
            return None
        versions = closed_form(i, staleness, self.microbatches_per_update)
        return Forward(i, versions.forward, speculative=versions.forward < versions.backward)

    @property
    def _is_last(self) -> bool:
        return self.stage == self.stages - 1

    def _expect(self, what: str, i: int, expected: int, end: int) -> None:
        if i != expected or i >= end:
            raise MicrobatchOrderError(
                f"{what} {i} at stage {self.stage}, which expects {expected} of those below {end}"
            )
