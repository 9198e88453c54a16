"""Whether a job was given clearly worse clusters than its peers, and those left free, would give.

Problem: a plan can be sound and still be a bad one, by a leader that plays or is mistaken; but a search by
every follower would take their cores from training. Solution: a follower forms clusters of the plan's shapes,
and of one peer each, by the simple rules alone, out of no more peers than the plan took for the job. An
honest search never does much worse.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from ravnest_p2p.core.capability import MAX_BPS
from ravnest_p2p.core.coordinates import initial
from ravnest_p2p.core.planning.clusters import MAX_CLUSTERS, ClusterSearch
from ravnest_p2p.core.planning.cost import predicted_updates_per_s, takes_part
from ravnest_p2p.core.types import Capability, JobId, JobPlan, JobSpec, PeerId, Plan

CLEARLY_WORSE = 1.6
"""Times more updates a second by simple rules."""

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
    free = [peer for peer in capabilities if peer not in taken]
    # What two peers know of links differs by a lot, and of compute by little: it must be worse by both.
    unlinked = {peer: _unlinked(capability) for peer, capability in capabilities.items()}
    for job in plan.jobs:
        spec = jobs.get(job.job)
        if spec is None or not job.clusters or job.generation[:2] != plan.fence:
            continue
        if _worse(spec, job, unlinked, free) is None:
            continue
        found = _worse(spec, job, capabilities, free)
        if found is not None:
            planned, simple = found
            return (
                f"job {job.job[:8]}: {planned:.3g} updates/s, where the same peers and those left free "
                f"make {simple:.3g} by simple rules"
            )
    return ""


def _worse(
    spec: JobSpec, job: JobPlan, known: Mapping[PeerId, Capability], free: Iterable[PeerId]
) -> tuple[float, float] | None:
    """Updates a second as planned and by simple rules; None where these do not make clearly more."""
    planned = predicted_updates_per_s(spec, job.clusters, known)
    if planned is None:
        return None
    lengths = [len(cluster.stages) for cluster in job.clusters]
    simple = simple_rate(spec, lengths, [known[peer] for peer in job.peers], [known[peer] for peer in free])
    return (planned, simple) if simple > planned * CLEARLY_WORSE else None


def _unlinked(capability: Capability) -> Capability:
    """As if links took no time."""
    return replace(capability, up_bps=MAX_BPS, down_bps=MAX_BPS, coordinate=initial())


def simple_rate(
    spec: JobSpec,
    lengths: Collection[int],
    own: Iterable[Capability],
    free: Iterable[Capability],
    memory_scale: float = 1.0,
) -> float:
    """Updates a second that simple rules make of a job's peers and the fastest free ones; 0 if none fit.

    Args:
        lengths: stages of each of the clusters that it was given.
    """
    fastest = sorted(free, key=lambda c: (-c.flops, c.peer))[:MAX_CANDIDATES]
    able = [c for c in (*own, *fastest) if takes_part(spec, c)]
    found = ClusterSearch(spec, able, memory_scale).of_shapes(_shapes(spec, lengths))
    return 0.0 if found is None else found.rate


def _shapes(spec: JobSpec, lengths: Collection[int]) -> set[tuple[int, int]]:
    """(stages, clusters) of no more peers than were given, as the job allows them."""
    count, peers = len(lengths), sum(lengths)
    shapes = {(min(lengths), count), (peers // count, count), (1, min(peers, MAX_CLUSTERS))}
    return {
        (stages, clusters)
        for stages, clusters in shapes
        if spec.stages in (0, stages) and spec.clusters in (0, clusters)
    }
