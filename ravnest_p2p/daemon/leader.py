"""Making a plan when it is this peer's turn, and judging the plans of others.

The decisions are pure (`core.planning`); here the facts are gathered for them: the directory says who
offers what, a survey says who lives and how the jobs go, manifests are fetched so that jobs can be costed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from ravnest_p2p.core.errors import PlanError, RemoteFault
from ravnest_p2p.core.planning.check import check_plan
from ravnest_p2p.core.planning.planner import make_plan
from ravnest_p2p.core.types import Fence, JobId, JobPhase, JobSpec, JobStatus, PeerId, Plan
from ravnest_p2p.daemon.jobbook import JobBook
from ravnest_p2p.daemon.peer_messages import Overview, OverviewAsked
from ravnest_p2p.daemon.session import Session
from ravnest_p2p.daemon.survey import statuses, survey
from ravnest_p2p.daemon.view import SwarmView

log = logging.getLogger(__name__)

MANIFEST_TIMEOUT_S = 10.0
SEED_BITS = 32


class Leader:
    """One peer's planning, as leader and as follower."""

    def __init__(
        self,
        own: PeerId,
        swarm: str,
        session: Session,
        view: SwarmView,
        book: JobBook,
        overview: Callable[[], Overview],
    ) -> None:
        self._own = own
        self._swarm = swarm
        self._session = session
        self._view = view
        self._book = book
        self._overview = overview

    async def plan(self, fence: Fence, previous: Plan | None) -> Plan:
        """The plan for this fence, from facts asked for now.

        Raises:
            PlanError: our own check refuses it (our fault, but it must not be published).
        """
        await asyncio.gather(self._view.read_peers(), self._view.read_jobs())
        answers = await survey(
            self._session.rpc, self._own, self._overview(), self._view.capabilities, OverviewAsked()
        )
        capabilities = [
            self._view.capabilities[peer] for peer in sorted(answers) if peer in self._view.capabilities
        ]
        specs = await self._specs(self._view.submitted, answers)
        known = statuses(specs, answers, previous)
        for job, status in known.items():
            self._note_outcome(job, status)
        made = await asyncio.to_thread(
            make_plan,
            swarm=self._swarm,
            fence=fence,
            leader=self._own,
            seed=(fence.epoch << 8 | fence.term & 0xFF) % (1 << SEED_BITS),
            capabilities=capabilities,
            jobs=specs,
            statuses=known,
            previous=previous,
        )
        self.check(made, previous, {})
        return made

    def verdict(self, plan: Plan, previous: Plan | None, own: dict[JobId, JobStatus]) -> str:
        """Why this peer will not obey the plan; empty if it will."""
        try:
            self.check(plan, previous, own)
        except PlanError as error:
            return str(error)
        return ""

    def check(self, plan: Plan, previous: Plan | None, own: dict[JobId, JobStatus]) -> None:
        specs = {job: entry.spec for job, entry in self._book.jobs.items() if entry.spec and not entry.over}
        capabilities = self._view.capabilities.values()
        check_plan(plan, capabilities=capabilities, jobs=specs, own_statuses=own, previous=previous)

    async def _specs(self, jobs: Iterable[JobId], answers: Iterable[PeerId]) -> dict[JobId, JobSpec]:
        """Manifests of the open jobs, in order of submission; one that nobody can give is left out."""
        found: dict[JobId, JobSpec] = {}
        for job in jobs:
            entry = self._book.entry(job)
            if entry.over:
                continue
            if entry.spec is None:
                try:
                    fetch = self._session.files.manifest(job, answers)
                    entry.spec = await asyncio.wait_for(fetch, MANIFEST_TIMEOUT_S)
                except (RemoteFault, asyncio.TimeoutError) as error:
                    log.info(
                        "job %s cannot be planned yet: its manifest is not to be had: %s", job[:8], error
                    )
                    continue
            found[job] = entry.spec
        return found

    def _note_outcome(self, job: JobId, status: JobStatus) -> None:
        entry = self._book.entry(job)
        if status.phase in (JobPhase.DONE, JobPhase.FAILED) and not entry.over:
            entry.outcome, entry.reason = status.phase, status.reason
            self._book.save()
