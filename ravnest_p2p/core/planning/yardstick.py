"""Whether a job was given clearly worse clusters than its peers, and those left free, would give.

Problem: a plan can be sound and still be a bad one, by a leader that plays or is mistaken; but a search by
every follower would take their cores from training. Solution: a follower forms the job's clusters by the
simple rules alone (`ClusterSearch.simple`), out of no more peers than the plan took for it. An honest search
never does much worse.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ravnest_p2p.core.planning.clusters import ClusterSearch
from ravnest_p2p.core.planning.cost import predicted_updates_per_s, takes_part
from ravnest_p2p.core.types import Capability, JobId, JobPlan, JobSpec, PeerId, Plan

CLEARLY_WORSE = 1.6
"""Times more updates a second by simple rules: what two peers know of links differs by less."""

MAX_CANDIDATES = 64
"""Peers that are compared with, beside the plan's own."""


def clearly_worse(
    plan: Plan, jobs: Mapping[JobId, JobSpec], capabilities: Mapping[PeerId, Capability]
) -> str:
    """Why the plan is clearly worse than simple rules; empty if it is not, as far as one knows.

    Args:
        jobs: that we know; others are not looked at.
        capabilities: of the live peers that we know.
    """
    taken = {peer for job in plan.jobs for peer in (*job.peers, *job.standbys)}
    free = [capability for peer, capability in capabilities.items() if peer not in taken]
    for job in plan.jobs:
        spec = jobs.get(job.job)
        if spec is None or not job.clusters or job.generation[:2] != plan.fence:
            continue
        planned = predicted_updates_per_s(spec, job.clusters, capabilities)
        if planned is None:
            continue
        simple = _simple(spec, job, capabilities, free)
        if simple > planned * CLEARLY_WORSE:
            return (
                f"job {job.job[:8]}: {planned:.3g} updates/s, where the same peers and those left free "
                f"make {simple:.3g} by simple rules"
            )
    return ""


def _simple(
    spec: JobSpec, job: JobPlan, capabilities: Mapping[PeerId, Capability], free: Iterable[Capability]
) -> float:
    """Updates a second by simple rules, of at most as many peers as the job was given."""
    fastest = sorted(free, key=lambda c: (-c.flops, c.peer))[:MAX_CANDIDATES]
    own = [capabilities[peer] for peer in job.peers]
    search = ClusterSearch(spec, [c for c in (*own, *fastest) if takes_part(spec, c)])
    formation = search.simple(len(own), clusters=len(job.clusters) if spec.clusters else 0)
    return 0.0 if formation is None else formation.rate
