"""Whether a published plan may be obeyed.

Problem: the leader may be mistaken or malicious, and a follower knows slightly other facts. Solution: check
what can be checked without planning anew. Structure holds for every job plan; memory and known peers only for
generations that this very plan forms, with a tolerance for other knowledge. Whether it moves what runs well
is another question (`core.consent`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise

from ravnest_p2p.core.averaging import ADAPTIVE
from ravnest_p2p.core.cadence import TOLD_IN
from ravnest_p2p.core.errors import PlanError
from ravnest_p2p.core.planning.cost import memory_of, staleness_limit, takes_part
from ravnest_p2p.core.planning.cuts import LayerTable
from ravnest_p2p.core.planning.identity import generation_tag
from ravnest_p2p.core.planning.overlap import ALWAYS as ALWAYS_OVERLAPS
from ravnest_p2p.core.planning.overlap import NEVER as NEVER_OVERLAPS
from ravnest_p2p.core.planning.recompute import ALWAYS, AUTO
from ravnest_p2p.core.types import (
    Capability,
    ClusterPlan,
    JobId,
    JobPlan,
    JobSpec,
    PeerId,
    Plan,
)
from ravnest_p2p.core.wording import bytes_text, peer_text

MEMORY_TOLERANCE = 1.1
UNKNOWN_PEERS_SHARE = 0.25
"""Of the peers that a plan newly assigns, this share (but one at least) may be unknown to us."""

MAX_UPDATES_PER_ROUND = 1_000_000


def check_plan(
    plan: Plan,
    *,
    capabilities: Iterable[Capability],
    jobs: Mapping[JobId, JobSpec],
    previous: Plan | None,
) -> None:
    """Refuse a plan that breaks a constraint.

    Args:
        capabilities: of the peers that we know.
        jobs: the open jobs that we know; a job that we do not know is checked for structure only.
        previous: the plan that we obeyed last.
    Raises:
        PlanError: the message names the job and the broken constraint.
    """
    known = {capability.peer: capability for capability in capabilities}
    _no_duplicates((job.job for job in plan.jobs), "job {} is planned twice")
    _no_duplicates((p for job in plan.jobs for p in job.peers), "peer {} is given more than one stage")
    old = {job.job: job for job in previous.jobs} if previous is not None else {}
    for job in plan.jobs:
        before = old.get(job.job)
        if before is not None and before == job:
            continue
        _check_generation(plan, job)
        _check_progress(job, jobs.get(job.job), before)
        _check_rings(job)
        _check_clusters(job, jobs.get(job.job), known if _is_new(plan, job) else {})
    _check_unknown(plan, known)


def _is_new(plan: Plan, job: JobPlan) -> bool:
    return job.generation[:2] == plan.fence


def _check_generation(plan: Plan, job: JobPlan) -> None:
    if job.generation[:2] > plan.fence:
        raise PlanError(f"{_name(job)}: generation {job.generation} is above the plan's fence {plan.fence}")
    if job.generation.tag != generation_tag(job):
        raise PlanError(f"{_name(job)}: generation {job.generation} carries a wrong tag")


def _check_progress(job: JobPlan, spec: JobSpec | None, before: JobPlan | None) -> None:
    if job.batches_done < 0 or job.version < 0:
        raise PlanError(f"{_name(job)}: negative progress")
    if spec is not None and job.batches_done > spec.total_batches:
        raise PlanError(f"{_name(job)}: resumes at batch {job.batches_done} of {spec.total_batches}")
    if before is not None and job.batches_done < before.batches_done:
        raise PlanError(
            f"{_name(job)}: goes back to batch {job.batches_done}, though {before.batches_done} were saved"
        )
    if not job.clusters:
        if job.standbys or job.pieces or job.version:
            raise PlanError(f"{_name(job)}: waits, and yet assigns state or standbys")
        if not job.reason:
            raise PlanError(f"{_name(job)}: waits without a reason")
        return
    if not job.pieces:
        if job.batches_done or job.version:
            raise PlanError(f"{_name(job)}: resumes at batch {job.batches_done} without saved pieces")
        return
    _check_pieces(job, job.clusters[0].stages[-1].hi if job.clusters[0].stages else 0)


def _check_pieces(job: JobPlan, layers: int) -> None:
    at = 0
    for piece in job.pieces:
        if piece.batches_done != job.batches_done or not piece.holders or piece.batches_done <= 0:
            raise PlanError(f"{_name(job)}: a piece is of another round, or nobody holds it")
        if not 0 <= piece.lo <= at < piece.hi <= layers:
            raise PlanError(f"{_name(job)}: pieces leave out layer {at}, or are not in order")
        at = piece.hi
    if at != layers:
        raise PlanError(f"{_name(job)}: pieces end at layer {at} of {layers}")
    if job.version != max(piece.version for piece in job.pieces):
        raise PlanError(f"{_name(job)}: version {job.version} is not that of its pieces")


def _check_clusters(job: JobPlan, spec: JobSpec | None, known: Mapping[PeerId, Capability]) -> None:
    if not job.clusters:
        return
    _no_duplicates((*job.peers, *job.standbys), f"{_name(job)}: peer {{}} is stage and standby, or twice")
    layers = len(spec.layers) if spec is not None else _end(job.clusters[0])
    if spec is not None and spec.clusters and len(job.clusters) > spec.clusters:
        raise PlanError(f"{_name(job)}: {len(job.clusters)} clusters, though {spec.clusters} are wanted")
    for cluster in job.clusters:
        if spec is not None and spec.stages and len(cluster.stages) != spec.stages:
            raise PlanError(f"{_name(job)}: {len(cluster.stages)} stages, though {spec.stages} are wanted")
        if not 1 <= cluster.updates_per_round <= MAX_UPDATES_PER_ROUND:
            raise PlanError(f"{_name(job)}: {cluster.updates_per_round} updates a round")
        _check_overlap(job, cluster, spec)
        _check_cover(job, cluster, layers)
        _check_staleness(job, cluster, spec)
        if spec is not None:
            _check_peers(job, cluster, spec, known)


def _check_overlap(job: JobPlan, cluster: ClusterPlan, spec: JobSpec | None) -> None:
    least, most = 0, cluster.updates_per_round
    if spec is not None and spec.kappa == ADAPTIVE:
        most = max(0, most - TOLD_IN)
    if len(job.clusters) < 2 or (spec is not None and spec.overlap == NEVER_OVERLAPS):
        most = 0
    elif spec is not None and spec.overlap == ALWAYS_OVERLAPS:
        least = min(1, most)
    if not least <= cluster.overlap <= most:
        raise PlanError(
            f"{_name(job)}: {cluster.overlap} updates before a mean is taken, though {least} to {most} are "
            "allowed"
        )


def _check_rings(job: JobPlan) -> None:
    count = len(job.clusters)
    if job.ring_order and sorted(job.ring_order) != list(range(count)):
        raise PlanError(f"{_name(job)}: the rings are no order of {count} clusters")
    if not 1 <= job.ring_columns <= max(1, count):
        raise PlanError(f"{_name(job)}: {job.ring_columns} columns of {count} clusters")


def _end(cluster: ClusterPlan) -> int:
    return cluster.stages[-1].hi if cluster.stages else 0


def _check_cover(job: JobPlan, cluster: ClusterPlan, layers: int) -> None:
    at = 0
    for stage in cluster.stages:
        if stage.lo != at or stage.hi <= stage.lo:
            raise PlanError(f"{_name(job)}: layers [{stage.lo}, {stage.hi}) do not follow layer {at}")
        at = stage.hi
    if at != layers or at == 0:
        raise PlanError(f"{_name(job)}: a cluster's stages end at layer {at} of {layers}")


def _check_staleness(job: JobPlan, cluster: ClusterPlan, spec: JobSpec | None) -> None:
    last = len(cluster.stages) - 1
    for s, stage in enumerate(cluster.stages):
        limit = stage.staleness if spec is None else staleness_limit(spec)
        if s == last:
            limit = 0
        if not 0 <= stage.staleness <= limit:
            raise PlanError(
                f"{_name(job)}: staleness {stage.staleness} at stage {s}, at most {limit} is allowed"
            )


def _check_peers(
    job: JobPlan, cluster: ClusterPlan, spec: JobSpec, known: Mapping[PeerId, Capability]
) -> None:
    table = LayerTable(spec.layers)
    stages = len(cluster.stages)
    for s, stage in enumerate(cluster.stages):
        if spec.checkpoint != AUTO and stage.recompute != (spec.checkpoint == ALWAYS):
            raise PlanError(f"{_name(job)}: stage {s} recomputes otherwise than the job wants")
        peer = known.get(stage.peer)
        if peer is None:
            continue
        if not takes_part(spec, peer):
            raise PlanError(f"{_name(job)}: peer {peer_text(stage.peer)} takes no part in so large a job")
        need = memory_of(
            spec, table, s, stages, stage.lo, stage.hi, stage.staleness, recompute=stage.recompute
        ).needed
        if need > peer.memory_bytes * MEMORY_TOLERANCE:
            raise PlanError(
                f"{_name(job)}: stage {s} needs {bytes_text(need)}, peer {peer_text(stage.peer)} offers "
                f"{bytes_text(peer.memory_bytes)}"
            )


def _check_unknown(plan: Plan, known: Mapping[PeerId, Capability]) -> None:
    assigned = [peer for job in plan.jobs if _is_new(plan, job) for peer in job.peers]
    unknown = [peer for peer in assigned if peer not in known or not known[peer].online]
    if len(unknown) > max(1.0, len(assigned) * UNKNOWN_PEERS_SHARE):
        raise PlanError(f"assigns {len(unknown)} of {len(assigned)} peers that are not known to be online")


def _no_duplicates(values: Iterable[str], message: str) -> None:
    for a, b in pairwise(sorted(values)):
        if a == b:
            raise PlanError(message.format(a))


def _name(job: JobPlan) -> str:
    return f"job {job.job[:8]}"
