"""All parts that this peer plays in jobs, and what the adopted plan makes of them."""

from __future__ import annotations

import asyncio
import logging

from ravnest_p2p.core.types import JobId, JobPhase, JobPlan, Piece, Plan
from ravnest_p2p.daemon.host_deps import HostDeps
from ravnest_p2p.daemon.loss_curve import LossCurve, curve_path
from ravnest_p2p.daemon.peer_messages import Overview, OverviewAsked, StageView
from ravnest_p2p.daemon.stage_host import SHOWN_LOSSES, StageHost

log = logging.getLogger(__name__)

MAX_VIEWS = 256


class Hosts:
    """Stage hosts by job.

    Attributes:
        addresses: where this peer can be dialled now, as it tells others.
    """

    def __init__(self, deps: HostDeps) -> None:
        self.addresses: tuple[str, ...] = ()
        self._deps = deps
        self._hosts: dict[JobId, StageHost] = {}

    def overview(self, asked: OverviewAsked | None = None) -> Overview:
        """This peer's parts, and the jobs of which it only holds pieces or knows the end."""
        asked = asked or OverviewAsked()
        views = []
        for job, entry in self._deps.book.jobs.items():
            if asked.job is not None and job != asked.job:
                continue
            host = self._hosts.get(job)
            if host is not None and (host.generation is not None or host.took_part):
                views.append(host.view(losses=asked.losses, plan=asked.plans))
            elif entry.pieces or entry.over:
                phase = entry.outcome or JobPhase.WAITING
                curve = LossCurve(curve_path(self._deps.jobs_folder, job)) if asked.losses else None
                views.append(
                    StageView(
                        job=job,
                        phase=phase,
                        reason=entry.reason,
                        pieces=tuple(entry.pieces),
                        loss=curve.recent if curve else None,
                        losses=curve.shown(SHOWN_LOSSES) if curve else (),
                    )
                )
        return Overview(addresses=self.addresses, stages=tuple(views[-MAX_VIEWS:]))

    async def run_well(self, job: JobPlan) -> bool:
        """Whether our part in this generation goes well, by what co-members say now."""
        host = self._hosts.get(job.job)
        return host is not None and host.generation == job.generation and await host.confirm()

    def broken(self, plan: Plan) -> str:
        """Why a generation of the plan, in which we take part, is over; empty if none is."""
        for job in plan.jobs:
            host = self._hosts.get(job.job)
            if host is not None and host.generation == job.generation:
                if host.phase is JobPhase.BROKEN:
                    return f"job {job.job[:8]}: {host.reason}"
                if self._deps.book.entry(job.job).outcome is JobPhase.DONE:
                    return f"job {job.job[:8]} is done"
        return ""

    async def obey(self, plan: Plan) -> None:
        """Start, replace and end parts as the plan says."""
        ours = {job.job: job for job in plan.jobs if self._deps.own in job.peers}
        standing_by = {job.job for job in plan.jobs if self._deps.own in job.standbys}
        for job, host in list(self._hosts.items()):
            if job not in ours and (job not in standing_by or host.generation is not None):
                await host.leave(_why_left(plan, job))
        for job, job_plan in ours.items():
            if job not in self._hosts:
                self._hosts[job] = StageHost(job, self._deps)
            await self._hosts[job].obey(job_plan)
        for job_plan in plan.jobs:
            if self._deps.own in job_plan.standbys:
                self._hosts.setdefault(job_plan.job, StageHost(job_plan.job, self._deps)).stand_by()

    def keep(self, job: JobId, piece: Piece) -> None:
        """Hold a copy of a piece that lies in the store."""
        host = self._hosts.setdefault(job, StageHost(job, self._deps))
        host.pieces.keep(piece)

    def interrupt(self, reason: str) -> None:
        """What every part stands on is gone: break them all."""
        for host in self._hosts.values():
            host.interrupt(reason)

    async def close(self) -> None:
        await asyncio.gather(*(host.close() for host in self._hosts.values()), return_exceptions=True)


def _why_left(plan: Plan, job: JobId) -> str:
    reason = next((job_plan.reason for job_plan in plan.jobs if job_plan.job == job), "")
    return reason or "the plan has no place for this peer"
