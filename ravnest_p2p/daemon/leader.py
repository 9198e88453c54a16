"""Making a plan when it is this peer's turn, and judging the plans of others.

The decisions are pure (`core.planning`); here the facts are gathered for them: the directory says who
offers what, a survey says who lives and how the jobs go, manifests are fetched so that jobs can be costed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

from ravnest_p2p.core.ballot import PlanHeader
from ravnest_p2p.core.errors import PlanError, RemoteFault
from ravnest_p2p.core.planning.check import check_plan
from ravnest_p2p.core.planning.identity import plan_hash
from ravnest_p2p.core.planning.planner import make_plan
from ravnest_p2p.core.types import Fence, Generation, JobId, JobPhase, JobSpec, JobStatus, PeerId, Plan
from ravnest_p2p.daemon.jobbook import JobBook
from ravnest_p2p.daemon.peer_messages import Overview, OverviewAsked
from ravnest_p2p.daemon.session import Session
from ravnest_p2p.daemon.survey import running_jobs, statuses, survey
from ravnest_p2p.daemon.view import SwarmView
from ravnest_p2p.daemon.warmup import Warmup
from ravnest_p2p.network.p2pd_waits import bounded

log = logging.getLogger(__name__)

MANIFEST_TIMEOUT_S = 3.0
MANIFESTS_AT_ONCE, MANIFESTS_A_PLAN = 16, 64
RETRY_S = 20.0
MAX_ATTEMPTS = 6
SEED_BITS = 32


def given_up(status: JobStatus, lineage: Sequence[tuple[Generation, int]]) -> JobStatus:
    """A job that breaks again and again without saving a round has failed: its own fault, or no peer's.

    Args:
        lineage: the job's generations so far, each with the batches done where it began.
    """
    if status.phase is not JobPhase.BROKEN or len(lineage) < MAX_ATTEMPTS:
        return status
    saved = max((piece.batches_done for piece in status.pieces), default=0)
    if len({first for _, first in lineage[-MAX_ATTEMPTS:]}) > 1 or saved > lineage[-1][1]:
        return status
    reason = f"{MAX_ATTEMPTS} generations broke before they saved a round; the last because: {status.reason}"
    return replace(status, phase=JobPhase.FAILED, reason=reason)


class Leader:
    """One peer's planning, as leader and as follower.

    Attributes:
        warmup: of the search.
        unheard: peers that lend, and did not answer when this one planned last.
    """

    def __init__(
        self,
        own: PeerId,
        swarm: str,
        session: Session,
        view: SwarmView,
        book: JobBook,
        overview: Callable[[OverviewAsked], Overview],
        search_s: float,
    ) -> None:
        """Args:
        search_s: for which the search for clusters may go on; a term should not end meanwhile.
        """
        self._own = own
        self._swarm = swarm
        self._session = session
        self._view = view
        self._book = book
        self._overview = overview
        self._failed_s: dict[JobId, float] = {}
        self._search_s = search_s
        self.warmup = Warmup()
        self.unheard: frozenset[PeerId] = frozenset()

    async def plan(self, fence: Fence, previous: Plan | None) -> Plan:
        """The plan for this fence, from facts asked for now.

        Raises:
            PlanError: we know too little to lead, or our own check refuses the plan.
        """
        await asyncio.gather(self._view.read_peers(), self._view.read_jobs())
        asked = OverviewAsked(plans=True)
        answers = await survey(
            self._session.rpc, self._own, self._overview(asked), self._view.capabilities, asked
        )
        capabilities = [
            self._view.capabilities[peer] for peer in sorted(answers) if peer in self._view.capabilities
        ]
        self.unheard = frozenset(peer for peer, _ in self._view.lending if peer not in answers)
        running = running_jobs(previous, answers, self._view.elders)
        specs = await self._specs(self._view.submitted, answers)
        known = {
            job: given_up(status, self._book.entry(job).lineage)
            for job, status in statuses(specs, answers, running).items()
        }
        for job, status in known.items():
            self._note_outcome(job, status)
        plan = partial(
            make_plan,
            swarm=self._swarm,
            fence=fence,
            leader=self._own,
            seed=(fence.epoch << 8 | fence.term & 0xFF) % (1 << SEED_BITS),
            capabilities=capabilities,
            jobs=specs,
            statuses=known,
            previous=previous,
            running=running,
            owners=self._view.requesters,
            elders=self._view.elders,
        )
        made = await self._in_time(plan)
        self.check(made, previous)
        return made

    async def _in_time(self, plan: Callable[..., Plan]) -> Plan:
        """By the search where it is ready and ends before the term does, else by simple rules."""
        if self.warmup.ready:
            searching = asyncio.create_task(asyncio.to_thread(plan))
            try:
                # It cannot be stopped, and ends by itself soon after.
                return await bounded(asyncio.shield(searching), self._search_s)
            except asyncio.TimeoutError:
                log.info("the search took over %.1f s, this plan follows simple rules", self._search_s)
        return await asyncio.to_thread(plan, search=False)

    def judged(self, plan: Plan, previous: Plan | None) -> PlanHeader:
        """The plan's header with this peer's verdict on its content."""
        try:
            self.check(plan, previous)
        except PlanError as error:
            return PlanHeader(plan.fence, plan.leader, plan_hash(plan), str(error))
        return PlanHeader(plan.fence, plan.leader, plan_hash(plan))

    def check(self, plan: Plan, previous: Plan | None) -> None:
        specs = {job: entry.spec for job, entry in self._book.jobs.items() if entry.spec and not entry.over}
        check_plan(plan, capabilities=self._view.capabilities.values(), jobs=specs, previous=previous)

    async def _specs(self, jobs: Iterable[JobId], answers: Iterable[PeerId]) -> dict[JobId, JobSpec]:
        """Manifests of the open jobs, in order of submission; what nobody gives in time is left out."""
        open_jobs = [job for job in jobs if not self._book.entry(job).over]
        holders, places = list(answers), asyncio.Semaphore(MANIFESTS_AT_ONCE)

        async def fetch(job: JobId) -> None:
            async with places:
                try:
                    fetching = self._session.files.manifest(job, holders)
                    self._book.entry(job).spec = await bounded(fetching, MANIFEST_TIMEOUT_S)
                except (RemoteFault, asyncio.TimeoutError) as error:
                    self._failed_s[job] = time.monotonic()
                    log.info(
                        "job %s cannot be planned yet, its manifest is not to be had: %s", job[:8], error
                    )

        now_s = time.monotonic()
        missing = [job for job in open_jobs if self._book.entry(job).spec is None]
        due = [job for job in missing if now_s - self._failed_s.get(job, -RETRY_S) >= RETRY_S]
        await asyncio.gather(*(fetch(job) for job in due[:MANIFESTS_A_PLAN]))
        return {job: spec for job in open_jobs if (spec := self._book.entry(job).spec) is not None}

    def _note_outcome(self, job: JobId, status: JobStatus) -> None:
        entry = self._book.entry(job)
        if status.phase in (JobPhase.DONE, JobPhase.FAILED) and not entry.over:
            entry.outcome, entry.reason = status.phase, status.reason
            self._book.save()
