"""Clusters that train and average, in virtual time and one thread: `testing.training_sim` several times over.

The pipelines run beside one another until a round's mean is due. The rings are the product's (`core.rings`,
`training.averaging`, `training.late_mean`), their chunks handed over in memory: a segment is averaged when
the last of its holders has handed it over, and a holder whose mean is due goes on when all its segments are.
So each cluster ends with the bits of a real swarm that had this plan.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import permutations
from typing import Any

from torch import Tensor

from ravnest_p2p.core.ledger import DataOrder, Shares, sample_of
from ravnest_p2p.core.pipeline.schedule import Average, Snapshot, StageSchedule
from ravnest_p2p.core.rings import Member, Segment, SegmentRound, deliver, segments
from ravnest_p2p.core.types import ClusterPlan
from ravnest_p2p.testing.clock import VirtualClock
from ravnest_p2p.testing.lossy_link import Faults
from ravnest_p2p.testing.training_sim import SimulatedStage, Trained, link, run
from ravnest_p2p.training import StageTrainer, averaging
from ravnest_p2p.training.late_mean import settle, take_in
from ravnest_p2p.training.means import Parameters
from ravnest_p2p.training.snapshot import buffer_key, param_key

Rows = Callable[[Sequence[int]], Mapping[str, Tensor]]
"""Fields of the samples with these indices, by graph input name."""

Names = Callable[[int, int], Sequence[str]]
"""Parameters and changing buffers of layers [lo, hi), in the order in which they are averaged."""


def train_clusters(
    clusters: Sequence[ClusterPlan],
    trainers: Sequence[Sequence[StageTrainer]],
    rows: Rows,
    names: Names,
    *,
    order: DataOrder,
    shares: Shares,
    latency_s: float = 0.0,
) -> list[Trained]:
    """Train all batches of `shares`, from the trainers' weights to the last averaging.

    Args:
        clusters: layers, τ and κ of every stage; the peers do not matter.
        trainers: of each cluster's stages in order, made with the same τ and m.
        latency_s: of every link of a pipeline, one way.
    Returns:
        What each cluster leaves.
    Raises:
        InvariantViolation: a stage ran on other weights than the schedule says, or did not finish.
    """
    clock, results = VirtualClock(), [Trained() for _ in clusters]
    meeting = _Meeting(segments(clusters), names, shares)
    stages = []
    for c, (plan, its) in enumerate(zip(clusters, trainers, strict=True)):
        pipeline = [
            SimulatedStage(
                _schedule(plan, s, c, order, shares),
                trainer,
                _fed(rows, order, shares, c),
                clock,
                results[c],
                partial(meeting.come, Member(c, s)),
            )
            for s, trainer in enumerate(its)
        ]
        link(pipeline, clock, latency_s, Faults(), random.Random(c))
        meeting.members |= {Member(c, s): _Member(stage) for s, stage in enumerate(pipeline)}
        stages += pipeline
    run(stages, clock)
    return results


def average(members: Sequence[StageTrainer], names: Sequence[str], weights: Sequence[float]) -> int:
    """One segment's round: each member's tensors of these names become the weighted mean, the same bits.

    Returns:
        Bytes of the chunks that all together sent.
    """
    if not averaged(names, weights):
        return 0
    flats = [averaging.gather(member.params, member.buffers, names) for member in members]
    sent = mean_of(flats, weights)
    for member, flat in zip(members, flats, strict=True):
        averaging.scatter(flat, member.params, member.buffers, names)
    return sent


def averaged(names: Sequence[str], weights: Sequence[float]) -> bool:
    """Whether there is anything to average, and anybody who trained it beside another."""
    return len(weights) > 1 and bool(names) and any(weights)


def mean_of(flats: Sequence[Tensor], weights: Sequence[float]) -> int:
    """A round of these vectors, each of which becomes the mean; returns the bytes that all together sent."""
    chunks = averaging.chunk_count(flats[0].numel(), len(flats))
    return exchange(
        [
            SegmentRound(rank, weights, chunks, averaging.SegmentValues(flat, chunks))
            for rank, flat in enumerate(flats)
        ]
    )


def exchange(rounds: Sequence[SegmentRound[Any]]) -> int:
    """Hand all chunks over in memory, as copies, until every member has the mean.

    Args:
        rounds: of arithmetics whose chunks are arrays.
    Returns:
        Bytes of the chunks that all together sent.
    """
    sent = 0
    while any(one.outcome is None for one in rounds):
        for sender, other in permutations(rounds, 2):
            while (send := sender.next_for(other.rank)) is not None:
                payload = None if send.payload is None else send.payload.copy()
                sent += 0 if payload is None else payload.nbytes
                deliver(other, sender.rank, replace(send, payload=payload))
    return sent


class _Kept:
    """In the place of a piece: tensors, of which some may be replaced."""

    def __init__(self, trainer: StageTrainer) -> None:
        self._tensors = {param_key(name): tensor.detach().clone() for name, tensor in trainer.params.items()}
        self._tensors |= {buffer_key(name): tensor.clone() for name, tensor in trainer.buffers.items()}

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def replace(self, name: str, values: Tensor) -> Tensor:
        before, self._tensors[name] = self._tensors[name], values.clone()
        return before


@dataclass
class _Member:
    """A stage, and what it handed over.

    Attributes:
        begun: the round that it handed over for, the newest.
        means: of what it handed over for it, by segment.
        open: segments that the round has not averaged yet.
        kept: the snapshot, where training goes on.
        due: it waits for the mean.
    """

    stage: SimulatedStage
    begun: int = -1
    means: dict[Segment, Parameters] = field(default_factory=dict)
    open: set[Segment] = field(default_factory=set)
    kept: _Kept | None = None
    due: Average | None = None


class _Meeting:
    """Where the holders of segments hand over what they hold, and wait for one another."""

    def __init__(self, parts: Sequence[Segment], names: Names, shares: Shares) -> None:
        self.members: dict[Member, _Member] = {}
        self._names = {segment: names(segment.lo, segment.hi) for segment in parts}
        self._shares = shares

    def come(self, member: Member, op: Snapshot | Average) -> None:
        its = self.members[member]
        if isinstance(op, Snapshot):
            its.kept = _Kept(its.stage.trainer)
        if its.begun != op.round:
            self._hand_over(member, op.round)
        if isinstance(op, Snapshot):
            its.stage.met(op)
        else:
            its.due = op
            self._look(its)

    def _hand_over(self, member: Member, number: int) -> None:
        its = self.members[member]
        trainer = its.stage.trainer
        its.begun, its.open = number, {segment for segment in self._names if member in segment.members}
        its.means = {
            segment: Parameters(
                trainer.params, trainer.buffers, self._names[segment], len(segment.members), 1
            )
            for segment in its.open
        }
        for means in its.means.values():
            means.begin(trainer.params, trainer.buffers)
        for segment in tuple(its.open):
            if all(self.members[holder].begun == number for holder in segment.members):
                self._average(segment, number)

    def _average(self, segment: Segment, number: int) -> None:
        weights = self._shares.weights(number)
        of_members, names = [weights[member.cluster] for member in segment.members], self._names[segment]
        holders = [self.members[member] for member in segment.members]
        if averaged(names, of_members):
            mean_of([its.means[segment].mean for its in holders], of_members)
            for its in holders:
                if its.kept is not None:
                    settle(its.means[segment], its.stage.trainer.params, its.stage.trainer.buffers, its.kept)
        else:
            for its in holders:
                del its.means[segment]
        for its in holders:
            its.open.remove(segment)
            self._look(its)

    def _look(self, its: _Member) -> None:
        if its.due is None or its.open:
            return
        trainer = its.stage.trainer
        for means in its.means.values():
            if its.kept is not None:
                take_in(means, trainer.params, trainer.buffers)
            else:
                averaging.scatter(means.mean, trainer.params, trainer.buffers, means.names)
        op, its.due, its.kept = its.due, None, None
        its.stage.met(op)


def _schedule(plan: ClusterPlan, s: int, cluster: int, order: DataOrder, shares: Shares) -> StageSchedule:
    return StageSchedule(
        stage=s,
        stages=len(plan.stages),
        staleness=plan.stages[s].staleness,
        microbatches_per_update=order.microbatches_per_update,
        microbatches=shares.local_updates(cluster) * order.microbatches_per_update,
        updates_per_round=plan.updates_per_round,
        rounds=shares.rounds,
        upstream_staleness=plan.stages[s - 1].staleness if s else None,
        overlap=plan.overlap,
    )


def _fed(
    rows: Rows, order: DataOrder, shares: Shares, cluster: int
) -> Callable[[int], tuple[Mapping[str, Tensor], int]]:
    def fed(i: int) -> tuple[Mapping[str, Tensor], int]:
        sample = sample_of(order, shares, cluster, i)
        return rows(sample.indices), sample.seed

    return fed
