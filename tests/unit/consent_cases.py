"""Plans for the tests of consent: one cluster a job, one stage a member."""

from __future__ import annotations

from collections.abc import Iterable

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


def job_of(generation: Generation, peers: Iterable[str], name: str = "job") -> JobPlan:
    """A job of one cluster with these members."""
    stages = tuple(StageAssignment(PeerId(peer), n, n + 1, 0) for n, peer in enumerate(peers))
    return JobPlan(JobId(name), generation, (ClusterPlan(stages, 1),))


def plan_of(fence: Fence, *jobs: JobPlan) -> Plan:
    """A plan of these jobs."""
    return Plan("swarm", fence, PeerId("leader"), 0, "", "", jobs)
