"""A job's status, put together from what its peers say of their parts.

Nobody owns a job, so nobody owns its status: whoever is asked surveys the members and merges their answers.
The result is the plain map of the gateway protocol; `client.Progress` is its typed form.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ravnest_p2p.core.planning.resume import resume_point
from ravnest_p2p.core.types import ClusterPlan, JobId, JobPhase, JobPlan, JobSpec, PeerId, Plan
from ravnest_p2p.daemon.jobbook import JobEntry
from ravnest_p2p.daemon.loss_curve import thinned
from ravnest_p2p.daemon.messages import Report
from ravnest_p2p.daemon.peer_messages import Overview, StageView
from ravnest_p2p.daemon.stage_news import batch_too_small, narrowest
from ravnest_p2p.daemon.survey import merged_pieces

LOSSES_SHOWN = 1000


def job_status(
    job: JobId,
    entry: JobEntry,
    plan: Plan | None,
    overviews: Mapping[PeerId, Overview],
    online: Iterable[PeerId],
) -> dict[str, Any]:
    """Status of one job, from the overviews of the peers that answered."""
    views = {peer: view for peer, o in overviews.items() for view in o.stages if view.job == job}
    job_plan = next((p for p in plan.jobs if p.job == job), None) if plan is not None else None
    spec = entry.spec
    phase, reason = _phase(entry, job_plan, views)
    clusters = (
        [_cluster(c, number, views, job_plan) for number, c in enumerate(job_plan.clusters)]
        if job_plan
        else []
    )
    reports = [view.report for view in views.values() if view.report is not None]
    members = set(job_plan.peers) if job_plan is not None else set()
    done = _batches_done(views.values(), job_plan)
    fence = plan.fence if plan is not None else None
    return {
        "job": job,
        "name": spec.name if spec is not None else "",
        "phase": phase.value,
        "reason": reason,
        "generation": str(job_plan.generation) if job_plan is not None and job_plan.clusters else None,
        "epoch": fence.epoch if fence else None,
        "term": fence.term if fence else None,
        "leader": plan.leader if plan is not None else None,
        "batches_done": done,
        "batches_trained": _batches_trained(job_plan, clusters, done),
        "total_batches": spec.total_batches if spec is not None else 0,
        "samples": done * _batch_samples(spec),
        "samples_per_s": sum(c["samples_per_s"] for c in clusters) or _mean_rate(views.values()),
        "loss": _mean([view.loss for view in views.values() if view.loss is not None]),
        "elapsed_s": max((r.training_s for r in reports), default=0.0),
        "bytes_sent": sum(r.bytes_sent for r in reports),
        "skipped": _skipped(views.values()),
        "skipped_why": next((r.skipped_why for r in reports if r.skipped_why), ""),
        "advice": _advice(spec, job_plan, views),
        "clusters": clusters,
        "spares": sorted(set(online) - members),
        "standbys": list(job_plan.standbys) if job_plan is not None else [],
        "lineage": [[str(generation), first] for generation, first in entry.lineage],
        "losses": _losses(views.values()),
    }


def _phase(entry: JobEntry, plan: JobPlan | None, views: Mapping[PeerId, StageView]) -> tuple[JobPhase, str]:
    if entry.outcome is not None:
        return entry.outcome, entry.reason
    if any(v.phase is JobPhase.DONE and v.generation is None for v in views.values()):
        return JobPhase.DONE, ""
    if plan is None:
        # Leaders leave a job out that is done, which its members' answers may say a moment later.
        final = [p for p in merged_pieces(views) if entry.spec and p.batches_done == entry.spec.total_batches]
        if entry.spec and resume_point(final, views, len(entry.spec.layers)):
            return JobPhase.DONE, ""
        return JobPhase.WAITING, "it is not in a plan yet"
    if not plan.clusters:
        return JobPhase.WAITING, plan.reason
    members = [views.get(peer) for peer in plan.peers]
    current = [v for v in members if v is not None and v.generation == plan.generation]
    for bad in (JobPhase.FAILED, JobPhase.BROKEN):
        found = next((v for v in current if v.phase is bad), None)
        if found is not None:
            return bad, found.reason
    if current and all(v.phase is JobPhase.DONE for v in current) and len(current) == len(members):
        return JobPhase.DONE, ""
    if any(v.phase in (JobPhase.RUNNING, JobPhase.DONE) for v in current):
        return JobPhase.RUNNING, plan.reason
    return JobPhase.WAITING, f"{len(members)} peers start their workers"


def _cluster(
    cluster: ClusterPlan, number: int, views: Mapping[PeerId, StageView], plan: JobPlan | None
) -> dict[str, Any]:
    current = _current(views, plan)
    stages: list[dict[str, Any]] = []
    for s, place in enumerate(cluster.stages):
        view = current.get(place.peer)
        report = _report(view)
        stages.append(
            {
                "peer": place.peer,
                "stage": s,
                "lo": place.lo,
                "hi": place.hi,
                "phase": view.phase.value if view is not None else JobPhase.WAITING.value,
                "version": report.version,
                "updates": report.updates,
                "busy": report.busy,
                "staleness": report.staleness,
                "staleness_bound": place.staleness,
                "staleness_limit": report.staleness_limit if report.window else None,
                "window": report.window or None,
                "window_wanted": report.window_wanted if report.window else None,
                "ahead": list(report.ahead),
                "crossed": report.crossed,
                "window_needed": report.window_needed or None,
                "way_s": report.way_s,
                "rtt_s": report.rtt_s,
                "pace_s": report.pace_s,
                "in_flight": report.in_flight,
                "samples": report.samples,
                "bytes_sent": report.bytes_sent,
                "peak_memory_bytes": report.peak_memory_bytes,
                "peak_tensor_bytes": report.peak_tensor_bytes,
                "recompute": place.recompute,
                "kappa": report.kappa or None,
                "kappa_why": report.kappa_why,
                "skipped": report.skipped,
                "skipped_updates": report.skipped_updates,
                "training_s": report.training_s,
                "averaging_s": report.averaging_s,
            }
        )
    last = current.get(cluster.stages[-1].peer)
    rate = stages[-1]["samples"] / stages[-1]["training_s"] if stages[-1]["training_s"] else 0.0
    return {
        "cluster": number,
        "loss": last.loss if last is not None else None,
        "updates": min(stage["updates"] for stage in stages),
        "updates_per_round": cluster.updates_per_round,
        "overlap": cluster.overlap,
        "kappa": stages[0]["kappa"],
        "kappa_why": stages[0]["kappa_why"],
        "samples_per_s": rate,
        "stages": stages,
    }


def _current(views: Mapping[PeerId, StageView], plan: JobPlan | None) -> dict[PeerId, StageView]:
    """The views of those that are in the plan's generation."""
    return {
        peer: view for peer, view in views.items() if plan is not None and view.generation == plan.generation
    }


def _report(view: StageView | None) -> Report:
    return view.report if view is not None and view.report is not None else Report()


def _advice(spec: JobSpec | None, plan: JobPlan | None, views: Mapping[PeerId, StageView]) -> list[str]:
    """What would make the clusters that train faster, or better."""
    if spec is None or plan is None:
        return []
    current, lines = _current(views, plan), []
    for number, cluster in enumerate(plan.clusters):
        told = [current.get(stage.peer) for stage in cluster.stages]
        at_work = [view if view is not None and view.phase is JobPhase.RUNNING else None for view in told]
        reports = [_report(view) for view in at_work]
        found = (narrowest(spec, cluster, dict(enumerate(reports))), batch_too_small(spec, reports[0]))
        lines += [f"cluster {number}, {line}" for line in found if line]
    return lines


def _losses(views: Iterable[StageView]) -> list[list[float]]:
    curve = {batch: loss for view in views for batch, loss in view.losses}
    return [list(point) for point in thinned(curve, LOSSES_SHOWN)]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _mean_rate(views: Iterable[StageView]) -> float:
    """Samples a second of a job that is over: what the first stages saw of its last generation."""
    first = [view.report for view in views if view.report is not None and view.stage == 0]
    seconds = max((report.training_s for report in first), default=0.0)
    return sum(report.samples for report in first) / seconds if seconds else 0.0


def _skipped(views: Iterable[StageView]) -> int:
    """Micro-batches that some stage left out, of all clusters."""
    most: dict[int, int] = {}
    for view in views:
        if view.report is not None:
            most[view.cluster] = max(most.get(view.cluster, 0), view.report.skipped)
    return sum(most.values())


def _batches_done(views: Iterable[StageView], plan: JobPlan | None) -> int:
    saved = [piece.batches_done for view in views for piece in view.pieces]
    return max([plan.batches_done if plan is not None else 0, *saved])


def _batches_trained(plan: JobPlan | None, clusters: list[dict[str, Any]], done: int) -> int:
    """Batches applied by every stage of their cluster, averaged or not yet."""
    running = plan.batches_done + sum(c["updates"] for c in clusters) if plan is not None else 0
    return max(done, running)


def _batch_samples(spec: JobSpec | None) -> int:
    return spec.microbatch_size * spec.microbatches_per_update if spec is not None else 0
