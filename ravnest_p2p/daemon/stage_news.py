"""What stages report that people should read: once in a log, and in a job's status while it lasts."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from ravnest_p2p.core.pipeline.batch_advice import batch_advice
from ravnest_p2p.core.pipeline.window_advice import LASTING, Seen, advice, carries, too_narrow
from ravnest_p2p.core.types import ClusterPlan, JobId, JobPlan, JobSpec
from ravnest_p2p.daemon.messages import Report

log = logging.getLogger(__name__)


class StageNews:
    """Logs what one stage of one generation reports for the first time."""

    def __init__(self, job: JobId) -> None:
        self._job = job
        self._left_out = False
        self._narrow = False

    def hear(
        self, report: Report, spec: JobSpec | None, plan: JobPlan | None, place: tuple[int, int]
    ) -> None:
        """Args: place: cluster and stage in the plan."""
        if report.skipped_why and not self._left_out:
            self._left_out = True
            log.warning("job %s: left out as not finite: %s", self._job[:8], report.skipped_why)
        if spec is not None and plan is not None and not self._narrow:
            number, stage = place
            text = narrowest(spec, plan.clusters[number], {stage: report})
            if text:
                self._narrow = True
                log.warning("job %s: cluster %d, %s", self._job[:8], number, text)


def narrowest(spec: JobSpec, cluster: ClusterPlan, reports: Mapping[int, Report]) -> str:
    """What to do about the stage whose window costs most, all others waiting for it; empty where none does.

    Args:
        reports: of some of the cluster's stages, by their numbers.
    """
    found = []
    for stage, report in reports.items():
        carried = any(carries(r.way_s, r.rtt_s, r.pace_s) for s, r in reports.items() if s >= stage)
        allowed = min(report.staleness_limit, cluster.stages[stage].staleness) + 1
        if too_narrow(report.window_needed, allowed):
            found.append((stage, Seen(report.window_needed, allowed, report.version, carried)))
    if not found:
        return ""
    stage, seen = min(found, key=lambda each: each[1].busy)
    return advice(spec, cluster, stage, seen)


def batch_too_small(spec: JobSpec, first: Report) -> str:
    """What to say of m, by the window that a cluster's first stage has found; empty where it is enough."""
    if first.updates < LASTING:
        return ""
    tau = min(max(0, first.window - 1), spec.staleness_bound)
    return "".join(batch_advice(spec.microbatches_per_update, spec.staleness_bound, tau, "stage 0"))
