"""The simplest planner that keeps its promises: clusters of two peers, and what runs well stays.

Problem: the election's simulation needs plans, not good ones. Solution: running clusters whose members are
alive are kept verbatim; free peers are paired in an order drawn from the fence and become the next jobs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from random import Random

from ravnest_p2p.core.consent import Said, has_effect, lives, of_members
from ravnest_p2p.core.planning.turnout import fingerprints
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


def plan_pairs(
    swarm: str,
    fence: Fence,
    leader: PeerId,
    online: Collection[PeerId],
    previous: Plan | None,
    kept: Mapping[JobId, JobPlan],
    batches_done: Mapping[JobId, int],
) -> Plan:
    """Keep what runs, pair the rest.

    Args:
        online: peers that answer.
        previous: the plan that the leader obeys.
        kept: clusters that stay, see `stays`.
        batches_done: where a new generation of a job takes up the data order.
    """
    busy = {peer for job in kept.values() for peer in job.peers}
    free = sorted(set(online) - busy)
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
    idle = fingerprints(free)
    return Plan(swarm, fence, leader, 0, _digest(*sorted(online)), previous_hash, tuple(jobs), idle)


def stays(
    running: Mapping[JobId, JobPlan],
    said: Mapping[JobId, Mapping[PeerId, Said]],
    online: Collection[PeerId],
    broken: Collection[Generation],
) -> dict[JobId, JobPlan]:
    """Clusters that live, or of which nothing was heard yet, none of their peers twice.

    Args:
        running: the jobs as they run, see `core.consent.what_runs`.
        said: by each peer that answers, of each job.
    """
    kept: dict[JobId, JobPlan] = {}
    taken: set[PeerId] = set()

    def take(job: JobPlan, ready: bool) -> None:
        if ready and job.generation not in broken and job.job not in kept and taken.isdisjoint(job.peers):
            kept[job.job] = job
            taken.update(job.peers)

    def words(job: JobPlan) -> list[Said]:
        return of_members(job, said.get(job.job, {}))

    newest_first = sorted(running.values(), key=lambda job: job.generation, reverse=True)
    for job in newest_first:
        take(job, has_effect(job.generation, words(job), len(job.peers)))
    for job in newest_first:
        take(job, lives(job.generation, words(job), forming=True))
    for job in newest_first:
        take(job, set(online).issuperset(job.peers) and all(obeyed is None for obeyed, _ in words(job)))
    return kept


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


def invented(plan: Plan, known: Collection[PeerId]) -> str:
    """Why a plan that newly assigns peers whom nobody knows is refused; empty where it does not."""
    new = {peer for job in plan.jobs if job.generation[:2] == plan.fence for peer in job.peers}
    unknown = sorted(new.difference(known))
    return f"it assigns {len(unknown)} peers that are not known" if unknown else ""


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
