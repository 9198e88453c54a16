"""What must hold after every event, watched from outside.

Problem: a protocol that checks itself misses its own mistakes. Solution: the observer keeps its own record
of what every peer ever did, over crashes and restarts, compares each new deed with it, and stops the run at
the first one that must not be:

1. a peer obeys at most one leader for each (epoch, term), and its obeyed fence never goes back;
2. whom it obeys holds a ticket of that epoch;
3. a worker's generation never goes back, and names the worker;
4. a generation is one cluster under one leader, so two leaders never drive one cluster;
5. a cluster has effect only where all its members obey its generation: no frame of another one is taken;
6. no peer has effect in two clusters;
7. no plan of a stranger to the swarm ends a cluster that has effect, but for another of the same job;
8. micro-batches meet the versions of the closed form, and a state contains each batch exactly once, in order.
"""

from __future__ import annotations

from collections.abc import Collection

from ravnest_p2p.core.obedience import fence_of
from ravnest_p2p.core.types import Fence, Generation, JobPlan, PeerId, Plan


class InvariantError(AssertionError):
    """The protocol did what it must never do."""


class Invariants:
    """The observer. Its methods are called with every deed of every peer.

    Args:
        strangers: peers that nobody knew when the clusters were formed.

    Attributes:
        adoptions: plans adopted, over all peers.
        effective: times that a cluster came to have effect.
        frames: data frames taken.
    """

    def __init__(self, strangers: Collection[PeerId] = ()) -> None:
        self._strangers = strangers
        self.adoptions = 0
        self.effective = 0
        self.frames = 0
        self._tickets: set[tuple[int, PeerId]] = set()
        self._obeyed: dict[PeerId, tuple[Fence, PeerId, str]] = {}
        self._floor: dict[PeerId, Fence] = {}
        self._obeys: dict[PeerId, Generation] = {}
        self._formed: dict[Generation, tuple[PeerId, JobPlan]] = {}
        self._acts_in: dict[PeerId, Generation] = {}

    def ticket(self, epoch: int, peer: PeerId) -> None:
        """The peer has published its ticket."""
        self._tickets.add((epoch, peer))

    def formed(self, leader: PeerId, job: JobPlan) -> None:
        """A leader has formed a new generation."""
        known = self._formed.setdefault(job.generation, (leader, job))
        if known != (leader, job):
            raise InvariantError(
                f"generation {job.generation} formed by {known[0]} and, otherwise, by {leader}"
            )

    def adopted(self, peer: PeerId, plan: Plan, plan_hash: str) -> None:
        """The peer obeys a plan from now on."""
        fence, leader = plan.fence, plan.leader
        self.adoptions += 1
        before = self._obeyed.get(peer)
        if before is not None and fence < before[0]:
            raise InvariantError(f"{peer} went back from {before[0]} to {fence}")
        if before is not None and fence == before[0] and (leader, plan_hash) != before[1:]:
            raise InvariantError(f"{peer} obeys {leader} in {fence}, where it obeyed {before[1]}")
        if (fence.epoch, leader) not in self._tickets:
            raise InvariantError(f"{peer} obeys {leader}, who has no ticket of epoch {fence.epoch}")
        if leader in self._strangers:
            self._stolen(peer, plan)
        self._obeyed[peer] = (fence, leader, plan_hash)

    def obeys(self, peer: PeerId, generation: Generation | None) -> None:
        """The peer's worker takes up a generation, or stops."""
        if generation == self._obeys.get(peer):
            return
        self._end_effect(peer)
        self._obeys.pop(peer, None)
        if generation is None:
            return
        fence = fence_of(generation)
        floor = self._floor.get(peer)
        if floor is not None and fence <= floor:
            raise InvariantError(f"worker of {peer} went from {floor} to {generation}")
        if generation not in self._formed or peer not in self._formed[generation][1].peers:
            raise InvariantError(f"worker of {peer} obeys {generation}, of which it is no member")
        self._floor[peer] = fence
        self._obeys[peer] = generation
        self._begin_effect(generation)

    def frame(self, sender: PeerId, receiver: PeerId, generation: Generation) -> None:
        """The receiver has taken a data frame of this generation."""
        self.frames += 1
        members = self._formed[generation][1].peers
        if sender not in members or receiver not in members:
            raise InvariantError(f"{receiver} took a frame of {sender}, not both in {generation}")
        if self._obeys.get(receiver) != generation:
            raise InvariantError(
                f"{receiver} took a frame of {generation} and obeys {self._obeys.get(receiver)}"
            )

    def versions(self, peer: PeerId, what: str, seen: int, expected: int) -> None:
        """A stage has computed with an update count that the closed form gives, or has not."""
        if seen != expected:
            raise InvariantError(f"{what} at {peer} with version {seen}, not {expected}")

    def applied(self, peer: PeerId, batches: tuple[int, ...]) -> None:
        """A stage's state contains these batches."""
        if batches != tuple(range(len(batches))):
            raise InvariantError(f"the state at {peer} contains the batches {batches}")

    def _stolen(self, peer: PeerId, plan: Plan) -> None:
        acts_in = self._acts_in.get(peer)
        if acts_in is None or acts_in in {job.generation for job in plan.jobs}:
            return
        left = self._formed[acts_in][1].job
        moved_to = [job for job in plan.jobs if job.job == left]
        if not any(self._acts_in.get(member) == job.generation for job in moved_to for member in job.peers):
            raise InvariantError(f"{peer} leaves {acts_in}, which has effect, for {plan.leader}, a stranger")

    def _begin_effect(self, generation: Generation) -> None:
        members = self._formed[generation][1].peers
        if any(self._obeys.get(member) != generation for member in members):
            return
        self.effective += 1
        for member in members:
            other = self._acts_in.setdefault(member, generation)
            if other != generation:
                raise InvariantError(f"{member} acts in {other} and {generation}")

    def _end_effect(self, peer: PeerId) -> None:
        generation = self._acts_in.get(peer)
        if generation is not None:
            for member in self._formed[generation][1].peers:
                self._acts_in.pop(member, None)
