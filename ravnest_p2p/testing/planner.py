"""The simplest planner that keeps its promises: clusters of two peers, and what runs well stays.

Problem: the election's simulation needs plans, not good ones. Solution: running clusters whose members are
alive are kept verbatim; free peers are paired in an order drawn from the fence and become the next jobs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from random import Random

from ravnest_p2p.core.types import (
    ClusterPlan,
    Fence,
    Generation,
    JobId,
    JobPlan,
    PeerId,
    Plan,
    StageAssignment,
)

STALENESS = 2
"""Of the first of the two stages; the last one's is 0."""


@dataclass(frozen=True, slots=True)
class Beat:
    """A peer's sign of life: what it runs."""

    running: JobPlan | None


def plan_pairs(
    swarm: str,
    fence: Fence,
    leader: PeerId,
    beats: Mapping[PeerId, Beat],
    previous: Plan | None,
    broken: Collection[Generation],
    batches_done: Mapping[JobId, int],
) -> Plan:
    """Keep what runs, pair the rest.

    Args:
        beats: of all peers alive, as the leader sees them.
        previous: the plan that the leader obeys.
        batches_done: where a new generation of a job takes up the data order.
    """
    kept = _running(beats, previous, broken)
    busy = {peer for job in kept.values() for peer in job.peers}
    free = sorted(beats.keys() - busy)
    Random(f"{fence}{leader}").shuffle(free)
    jobs = list(kept.values())
    number = 0
    while len(free) >= 2:
        while JobId(f"job-{number}") in kept:
            number += 1
        job, pair = JobId(f"job-{number}"), (free.pop(), free.pop())
        number += 1
        stages = (StageAssignment(pair[0], 0, 1, STALENESS), StageAssignment(pair[1], 1, 2, 0))
        done = batches_done.get(job, 0)
        tag = _digest(leader, job, *pair, str(done))
        jobs.append(
            JobPlan(job, Generation(*fence, tag), (ClusterPlan(stages, 1),), batches_done=done, version=done)
        )
    previous_hash = "" if previous is None else plan_hash(previous)
    return Plan(swarm, fence, leader, 0, _digest(*sorted(beats)), previous_hash, tuple(jobs))


def plan_hash(plan: Plan) -> str:
    """Digest of who runs what under which leader."""
    return _digest(str(plan.fence), plan.leader, *(f"{job.job}{job.generation}" for job in plan.jobs))


def structural_fault(plan: Plan) -> str:
    """Why nobody should ever obey the plan; empty where there is no such fault."""
    peers = [peer for job in plan.jobs for peer in job.peers]
    if len(set(peers)) < len(peers):
        return "it uses a peer twice"
    if len({job.job for job in plan.jobs}) < len(plan.jobs):
        return "it names a job twice"
    if any(job.generation[:2] > plan.fence for job in plan.jobs):
        return "it names a generation of a later fence"
    return ""


def _running(
    beats: Mapping[PeerId, Beat], previous: Plan | None, broken: Collection[Generation]
) -> dict[JobId, JobPlan]:
    """For each job the highest generation that runs on peers alive, none of them twice."""
    candidates = {
        beat.running.generation: beat.running for beat in beats.values() if beat.running is not None
    }
    if previous is not None:
        candidates.update((job.generation, job) for job in previous.jobs)
    kept: dict[JobId, JobPlan] = {}
    taken: set[PeerId] = set()
    for generation in sorted(candidates, reverse=True):
        job = candidates[generation]
        alive = all(peer in beats and peer not in taken for peer in job.peers)
        if alive and generation not in broken and job.job not in kept:
            kept[job.job] = job
            taken.update(job.peers)
    return kept


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
