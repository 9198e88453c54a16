"""What the peers of one simulation share: time, network, directory, observer, and plans as they lie about."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

from ravnest_p2p.core.ballot import ElectionConfig
from ravnest_p2p.core.election import Election
from ravnest_p2p.core.types import JobId, PeerId, Plan

from .clock import VirtualClock
from .directory import SimulatedDirectory
from .invariants import Invariants
from .network import SimulatedNetwork
from .planner import plan_hash, structural_fault

if TYPE_CHECKING:
    from .swarm import SwarmPeer

DISK = frozenset({"plan", "worker"})


class Published:
    """A plan as it lies in the directory, with what every reader would compute from it."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.hash = plan_hash(plan)
        self.fault = structural_fault(plan)
        self.by_peer = {peer: job for job in plan.jobs for peer in job.peers}
        self.by_job = {job.job: job for job in plan.jobs}
        self.generations = {job.generation for job in plan.jobs}


@dataclass(eq=False)
class World:
    """What all peers of one simulation share.

    Attributes:
        peers: by name.
        trained: jobs that run a pipeline; the rest are clusters without data.
        disk: what a peer still knows after a crash: the plan obeyed, the worker's fence.
        blobs: saved states by (job, stage, batches done).
        crash_of_leader: probability that a peer crashes when it is about to publish a plan.
        transcript: lines of what happened, kept if not None.
    """

    rules: ElectionConfig
    random: Random
    clock: VirtualClock
    network: SimulatedNetwork
    directory: SimulatedDirectory
    invariants: Invariants
    peers_expected: int
    peers: dict[PeerId, SwarmPeer] = field(default_factory=dict)
    trained: frozenset[JobId] = frozenset({JobId("job-0"), JobId("job-1"), JobId("job-2")})
    election_class: type[Election] = Election
    disk: frozenset[str] = DISK
    crash_of_leader: float = 0.0
    blobs: dict[tuple[JobId, int, int], tuple[int, ...]] = field(default_factory=dict)
    transcript: list[str] | None = None

    def ask(self, asker: PeerId, peer: PeerId) -> SwarmPeer | None:
        """The other peer, to be asked a question over a reliable stream; None where it does not answer."""
        asked = self.peers.get(peer)  # a liar's plan may name somebody who is not there
        return (
            asked
            if asked is not None and asked.alive and self.network.side(asker) == self.network.side(peer)
            else None
        )

    def tell(self, who: str, text: str) -> None:
        """Add a line to the transcript."""
        if self.transcript is not None:
            self.transcript.append(f"{self.clock.now_s:10.2f} {who:>6} {text}")
