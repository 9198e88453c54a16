"""Members of segments, simulated: messages in any order, deaths at any moment.

The product's `core.rings.round` runs as it is; links deliver in order, each at its own time, drawn from a
seed. A member that dies says nothing more; of what it had sent some arrives, and then each other member
notices, at a time of its own. A member that is through leaves, and nobody may have anything to tell it then.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ravnest_p2p.core.rings import (
    DIGEST_BYTES,
    AgreedRound,
    Digests,
    Formed,
    Outcome,
    Result,
    Ring,
    SegmentRound,
    Send,
    Ways,
    chunk_bounds,
)

LINK_FRAMES = 2
"""That one link takes before the other end has read them."""

Values = np.ndarray[Any, np.dtype[np.float64]]
Message = Formed | Send[Values] | Result


class Numbers:
    """The arithmetic of one member.

    Attributes:
        mean: by chunk, once held.
    """

    def __init__(self, own: Values, chunks: int) -> None:
        self._own = [own[lo:hi] for lo, hi in chunk_bounds(len(own), chunks)]
        self.mean: dict[int, Values] = {}

    def part(self, chunk: int, share: float) -> Values:
        assert chunk not in self.mean, "an own part is gone once the mean is in its place"
        return self._own[chunk] * share

    def add(self, chunk: int, share: float, sums: Sequence[Values]) -> Values:
        total = self.part(chunk, share)
        for one in reversed(sums):
            total = total + one
        return total

    def hold(self, chunk: int, mean: Values) -> Values:
        assert chunk not in self.mean, "a mean is held once"
        self.mean[chunk] = mean
        return mean

    def result(self) -> Values:
        return np.concatenate([self.mean.get(chunk, own) for chunk, own in enumerate(self._own)])

    def digests(self, rows: int) -> Digests:
        found = [hashlib.blake2b(digest_size=DIGEST_BYTES) for _ in range(rows)]
        for chunk, own in enumerate(self._own):
            found[chunk % rows].update(self.mean.get(chunk, own).tobytes())
        return tuple(its.digest() for its in found)


@dataclass(slots=True)
class Simulated:
    """One member as it stands.

    Attributes:
        stored: most chunks that it kept for others at once.
    """

    numbers: Numbers
    round: SegmentRound[Values]
    agreed: AgreedRound[Values]
    alive: bool = True
    left: bool = False
    elements_sent: int = 0
    stored: int = 0
    unnoticed: set[int] = field(default_factory=set)


class RingsSim:
    """One segment's averaging.

    Args:
        own: (members, elements), what each brings.
        numbers: makes a member's arithmetic, from its rank, what it brings, and the chunks.

    Attributes:
        delivered: messages so far.
    """

    def __init__(
        self,
        own: Values,
        weights: Sequence[float],
        chunks: int,
        *,
        seed: int = 0,
        ways: Callable[[int], Ways] = Ring,
        window: int = 4,
        numbers: Callable[[int, Values, int], Numbers] = lambda rank, own, chunks: Numbers(own, chunks),
    ) -> None:
        self._random = random.Random(seed)
        self.own, self.weights = own, weights
        self.bounds = chunk_bounds(own.shape[1], chunks)
        self.members: list[Simulated] = []
        for rank, row in enumerate(own):
            its = numbers(rank, row, chunks)
            round_ = SegmentRound(rank, weights, chunks, its, ways, window)
            agreed = AgreedRound(round_, ways(len(own)), its.digests)
            self.members.append(Simulated(its, round_, agreed))
        self._links: dict[tuple[int, int], deque[Message]] = {}
        self.delivered = 0
        for rank in range(len(self.members)):
            self._act(rank)

    def survivors(self) -> list[int]:
        return [rank for rank, member in enumerate(self.members) if member.alive]

    def check(self) -> None:
        """What has to hold whatever died.

        Raises:
            AssertionError: it does not.
        """
        live = self.survivors()
        outcomes = {self.members[rank].agreed.outcome for rank in live}
        assert len(outcomes) <= 1, outcomes
        assert outcomes <= {Outcome.MEAN, Outcome.UNCHANGED}, outcomes
        assert all(self.members[rank].left for rank in live), "somebody still waits"
        assert not any(self.members[rank].agreed.dispute for rank in live)
        results = [self.members[rank].numbers.result() for rank in live]
        if outcomes == {Outcome.UNCHANGED}:
            for rank, result in zip(live, results, strict=True):
                assert np.array_equal(result, self.own[rank])
            return
        for result in results[1:]:
            assert np.array_equal(result, results[0]), "members differ"
        dead = [rank for rank in range(len(self.members)) if rank not in live]
        for lo, hi in self.bounds if live else ():
            assert any(
                np.allclose(results[0][lo:hi], self._mean([*live, *more])[lo:hi]) for more in _subsets(dead)
            ), f"elements {lo} to {hi} are no mean of those that live and some of {dead}"

    def _mean(self, ranks: Sequence[int]) -> Values:
        weights = np.array([self.weights[rank] for rank in ranks], dtype=np.float64)
        if not weights.any():
            weights += 1.0
        mean: Values = weights @ self.own[list(ranks)] / weights.sum()
        return mean

    def step(self) -> bool:
        """Deliver one message, or have one member notice a death; False where nothing is underway."""
        full = [link for link, queue in self._links.items() if queue and self.members[link[1]].alive]
        noticed = [
            (dead, rank)
            for rank, member in enumerate(self.members)
            if member.alive and not member.left
            for dead in sorted(member.unnoticed)
            if not self._links.get((dead, rank))
        ]
        if not full and not noticed:
            return False
        chosen = self._random.randrange(len(full) + len(noticed))
        if chosen < len(full):
            sender, rank = full[chosen]
            message, to = self._links[sender, rank].popleft(), self.members[rank]
            assert not (to.left and self.members[sender].alive), f"member {rank} has left before {message}"
            if not to.left:
                to.agreed.arrived(sender, message)
            self.delivered += 1
            if self.members[sender].alive:
                self._act(sender)
        else:
            dead, rank = noticed[chosen - len(full)]
            self.members[rank].unnoticed.discard(dead)
            self.members[rank].agreed.died(dead)
        self._act(rank)
        return True

    def kill(self, rank: int) -> None:
        """It says nothing more; of what it sent last some is lost."""
        self.members[rank].alive = False
        for (sender, receiver), queue in self._links.items():
            if receiver == rank:
                queue.clear()
            elif sender == rank:
                for _ in range(self._random.randint(0, len(queue))):
                    queue.pop()
        for member in self.members:
            if member.alive:
                member.unnoticed.add(rank)

    def _act(self, rank: int) -> None:
        """Send all that the links take."""
        member = self.members[rank]
        member.stored = max(member.stored, member.round.sums + member.round.means)
        for to in range(len(self.members)):
            queue = self._links.setdefault((rank, to), deque())
            while len(queue) < LINK_FRAMES and (message := member.agreed.next_for(to)) is not None:
                self._put(rank, to, message)
                if isinstance(message, Send) and message.payload is not None:
                    member.elements_sent += len(message.payload)
        member.left = member.agreed.outcome is not None and not member.agreed.untold

    def _put(self, rank: int, to: int, message: Message) -> None:
        if self.members[to].alive:
            self._links.setdefault((rank, to), deque()).append(message)


def run(sims: Sequence[RingsSim], deaths: Mapping[int, Sequence[tuple[int, int]]], seed: int = 0) -> int:
    """All at once, until nothing is underway; returns the messages that were delivered.

    Args:
        deaths: after so many messages, (segment, rank) that die.
    """
    chance, left, due = random.Random(seed), list(sims), dict(deaths)
    while left:
        delivered = sum(sim.delivered for sim in sims)
        for moment in sorted(due):
            if moment <= delivered:
                for segment, rank in due.pop(moment):
                    sims[segment].kill(rank)
                left = list(sims)
        sim = chance.choice(left)
        if not sim.step():
            left.remove(sim)
    return sum(sim.delivered for sim in sims)


def _subsets(ranks: Sequence[int]) -> list[list[int]]:
    return [[rank for n, rank in enumerate(ranks) if bits >> n & 1] for bits in range(1 << len(ranks))]
