"""Clusters that train and average, in virtual time and one thread: `testing.training_sim` several times over.

The pipelines run beside one another until a round is due. The rings are the product's (`core.rings`,
`training.averaging`), their chunks handed over in memory: a segment is averaged when the last of its holders
has come to the round, and a holder goes on when all its segments are. So each cluster ends with the bits of a
real swarm that had this plan.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import permutations
from typing import Any

from torch import Tensor

from ravnest_p2p.core.ledger import DataOrder, Shares, sample_of
from ravnest_p2p.core.pipeline.schedule import Average, StageSchedule
from ravnest_p2p.core.rings import Member, Segment, SegmentRound, deliver, segments
from ravnest_p2p.core.types import ClusterPlan
from ravnest_p2p.testing.clock import VirtualClock
from ravnest_p2p.testing.lossy_link import Faults
from ravnest_p2p.testing.training_sim import SimulatedStage, Trained, link, run
from ravnest_p2p.training import StageTrainer, averaging

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
        meeting.stages |= {Member(c, s): stage for s, stage in enumerate(pipeline)}
        stages += pipeline
    run(stages, clock)
    return results


def average(members: Sequence[StageTrainer], names: Sequence[str], weights: Sequence[float]) -> int:
    """One segment's round: each member's tensors of these names become the weighted mean, the same bits.

    Returns:
        Bytes of the chunks that all together sent.
    """
    if len(members) == 1 or not names or not any(weights):
        return 0
    flats = [averaging.gather(member.params, member.buffers, names) for member in members]
    chunks = averaging.chunk_count(flats[0].numel(), len(members))
    rounds = [
        SegmentRound(rank, weights, chunks, averaging.SegmentValues(flat, chunks))
        for rank, flat in enumerate(flats)
    ]
    sent = exchange(rounds)
    for member, flat in zip(members, flats, strict=True):
        averaging.scatter(flat, member.params, member.buffers, names)
    return sent


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


class _Meeting:
    """Where stages wait for the other holders of what they hold."""

    def __init__(self, parts: Sequence[Segment], names: Names, shares: Shares) -> None:
        self.stages: dict[Member, SimulatedStage] = {}
        self._names = {segment: names(segment.lo, segment.hi) for segment in parts}
        self._shares = shares
        self._due: dict[Member, set[Segment]] = {}

    def come(self, member: Member, op: Average) -> None:
        self._due[member] = {segment for segment in self._names if member in segment.members}
        for segment in tuple(self._due[member]):
            if all(segment in self._due.get(holder, ()) for holder in segment.members):
                self._average(segment, op)

    def _average(self, segment: Segment, op: Average) -> None:
        weights = self._shares.weights(op.round)
        holders = [self.stages[member].trainer for member in segment.members]
        average(holders, self._names[segment], [weights[member.cluster] for member in segment.members])
        for member in segment.members:
            self._due[member].remove(segment)
            if not self._due[member]:
                self.stages[member].averaged(op)


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
    )


def _fed(
    rows: Rows, order: DataOrder, shares: Shares, cluster: int
) -> Callable[[int], tuple[Mapping[str, Tensor], int]]:
    def fed(i: int) -> tuple[Mapping[str, Tensor], int]:
        sample = sample_of(order, shares, cluster, i)
        return rows(sample.indices), sample.seed

    return fed
