"""Averaging clusters that cut the model differently: who forms which ring, and each ring's next move.

Problem: copies of one model, each split among other peers at other layers, shall hold the same mean, bit for
bit, with every uplink moving as little as possible. Solution: the union of all clusters' cuts divides the
layers into segments, each of them within one stage of every cluster; the holders of a segment form a ring,
and all rings run at once. In a ring of C members a segment is C chunks; for 2(C-1) steps each member sends
one chunk to the next member and takes one from the previous:

    cluster A  │ stage 0          │ stage 1                 │      step t: member r sends chunk r-t (mod C)
    cluster B  │ stage 0   │ stage 1         │ stage 2      │      and takes chunk r-t-1, to send it in t+1
    segments   │     0     │  1   │    2     │      3       │      t < C-1: adds it up    t ≥ C-1: keeps it

Each chunk's sum grows along one fixed way around the ring, is complete at one member, and is copied from
there; so all members end with the same bits, and 2(C-1)/C of the segment crosses each uplink.

Source: arXiv 2401.01728, Parallel Multi-Ring All-Reduce.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import NamedTuple, Union

from ravnest_p2p.core.errors import ChunkMismatchError, OurFault, PlanError
from ravnest_p2p.core.types import ClusterPlan


class Member(NamedTuple):
    """The holder of a segment in one cluster."""

    cluster: int
    stage: int


@dataclass(frozen=True, slots=True)
class Segment:
    """Layers [lo, hi), which no cluster cuts, and their holders: one of each cluster, in ring order."""

    lo: int
    hi: int
    members: tuple[Member, ...]


def segments(clusters: Sequence[ClusterPlan]) -> list[Segment]:
    """The segments of a job in layer order.

    Raises:
        PlanError: a cluster does not hold the same layers as the others, each once, in order.
    """
    for number, cluster in enumerate(clusters):
        stages = cluster.stages
        joins = all(a.hi == b.lo for a, b in pairwise(stages))
        if not stages or not joins or any(stage.lo >= stage.hi for stage in stages):
            raise PlanError(f"the stages of cluster {number} are not a chain of layers")
        first = clusters[0].stages
        if (stages[0].lo, stages[-1].hi) != (first[0].lo, first[-1].hi):
            raise PlanError(f"cluster {number} holds other layers than cluster 0")
    cuts = sorted({cut for c in clusters for stage in c.stages for cut in (stage.lo, stage.hi)})
    return [
        Segment(
            lo,
            hi,
            tuple(
                Member(c, s)
                for c, cluster in enumerate(clusters)
                for s, stage in enumerate(cluster.stages)
                if stage.lo <= lo and hi <= stage.hi
            ),
        )
        for lo, hi in pairwise(cuts)
    ]


def chunk_bounds(elements: int, size: int) -> list[tuple[int, int]]:
    """Cut [0, elements) into `size` chunks of nearly equal length, the longer ones first."""
    if elements < 0 or size < 1:
        raise OurFault(f"{elements} elements in {size} chunks")
    starts = [c * (elements // size) + min(c, elements % size) for c in range(size + 1)]
    return list(pairwise(starts))


def normalised(weights: Sequence[float]) -> tuple[float, ...]:
    """Weights that sum to 1, or all zeros where nobody trained.

    Raises:
        OurFault: a weight is negative or not finite.
    """
    if any(not math.isfinite(w) or w < 0 for w in weights):
        raise OurFault(f"weights must be finite and not negative: {list(weights)}")
    total = math.fsum(weights)
    return tuple(w / total for w in weights) if total else tuple(0.0 for _ in weights)


class Phase(str, Enum):
    REDUCE = "reduce"
    GATHER = "gather"


@dataclass(frozen=True, slots=True)
class SendChunk:
    """Send this chunk, as it is now, to the next member."""

    step: int
    chunk: int
    phase: Phase


@dataclass(frozen=True, slots=True)
class Accumulate:
    """Add the received chunk to the own one."""

    chunk: int


@dataclass(frozen=True, slots=True)
class Replace:
    """Put the received chunk in the place of the own one."""

    chunk: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The segment holds the mean (or, where nobody trained, is as it was)."""


RingAction = Union[SendChunk, Accumulate, Replace, Finished]  # noqa: UP007 (one name for annotations on 3.10)


class RingRound:
    """One member's part in averaging one segment once; carry the returned actions out in order.

    Before `start`, multiply the own segment by `scale` into a buffer (where `scale` is 0, fill it with zeros:
    what was not trained may not be finite); let no chunk touch the parameters until `Finished`.

    Args:
        rank: place in the ring, of `size`; member rank sends to (rank + 1) mod size.
        weights: of all members, such as their samples trained since the last round; zeros are allowed.
    Raises:
        OurFault: numbers that make no ring; `chunk_received` outside the round.
    """

    def __init__(self, rank: int, size: int, weights: Sequence[float]) -> None:
        if not 0 <= rank < size or len(weights) != size:
            raise OurFault(f"rank {rank} in a ring of {size} with {len(weights)} weights")
        shares = normalised(weights)
        self.rank = rank
        self.size = size
        self.scale = shares[rank]
        self.unchanged = size == 1 or not any(shares)
        self._steps = 0 if self.unchanged else 2 * (size - 1)
        self._step: int | None = None

    @property
    def next_rank(self) -> int:
        return (self.rank + 1) % self.size

    @property
    def previous_rank(self) -> int:
        return (self.rank - 1) % self.size

    @property
    def finished(self) -> bool:
        return self._step == self._steps

    def start(self) -> list[RingAction]:
        """Begin: the first send, or `Finished` where the segment stays as it is."""
        if self._step is not None:
            raise OurFault("the ring round has been started before")
        self._step = 0
        return [self._send(0)] if self._steps else [Finished()]

    def chunk_received(self, step: int, chunk: int) -> list[RingAction]:
        """The previous member's chunk of this step came, its length and dtype checked by the caller.

        Raises:
            ChunkMismatchError: another step or chunk than the next one due, a repeated one, or one too many.
        """
        if self._step is None:
            raise OurFault("a chunk was handed in before the ring round was started")
        due = (self._step, (self.rank - self._step - 1) % self.size)
        if self.finished or (step, chunk) != due:
            wanted = "nothing more" if self.finished else f"step, chunk {due}"
            raise ChunkMismatchError(
                f"rank {self.rank} of {self.size} got step, chunk {(step, chunk)}; due: {wanted}"
            )
        self._step += 1
        take = Accumulate(chunk) if self._phase(step) is Phase.REDUCE else Replace(chunk)
        return [take, Finished() if self.finished else self._send(self._step)]

    def _send(self, step: int) -> SendChunk:
        return SendChunk(step, (self.rank - step) % self.size, self._phase(step))

    def _phase(self, step: int) -> Phase:
        return Phase.REDUCE if step < self.size - 1 else Phase.GATHER
