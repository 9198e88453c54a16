"""Asking whether a plan may end the generations that it moves.

The decisions are pure (`core.consent`); here the members are asked. A plan that leaves alone what is known to
run costs no question; any other a bounded number, and only so many plans are looked into at a time.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from math import inf
from typing import TypeVar

from ravnest_p2p.core.consent import Generations, Said, has_effect, lives, moved_jobs, successor
from ravnest_p2p.core.planning.promotion import objection
from ravnest_p2p.core.types import Fence, JobId, JobPlan, PeerId, Piece, Plan
from ravnest_p2p.daemon.hosts import Hosts
from ravnest_p2p.daemon.jobbook import JobBook
from ravnest_p2p.daemon.peer_messages import OverviewAsked
from ravnest_p2p.daemon.survey import merged_pieces, said_of, survey
from ravnest_p2p.daemon.view import SwarmView
from ravnest_p2p.network.rpc import Rpc

Name = TypeVar("Name", bound=str)

JOBS_ASKED_FOR = 8
MEMBERS_ASKED = 32
LOOKED_INTO, WITHIN_S = 16, 4.0


class Consent:
    """One peer's consent to plans that move running jobs."""

    def __init__(self, own: PeerId, rpc: Rpc, view: SwarmView, book: JobBook, hosts: Hosts) -> None:
        self._own = own
        self._rpc = rpc
        self._view = view
        self._book = book
        self._hosts = hosts
        self._looked_s: deque[float] = deque([-inf] * LOOKED_INTO, maxlen=LOOKED_INTO)

    async def doubt(self, plan: Plan, previous: Plan | None) -> str:
        """Why the plan must not be obeyed as things are; empty if it may."""
        known = self._known(plan, previous)
        if not known.ended_by(plan, self._over()):
            return ""
        now_s = time.monotonic()
        if now_s - self._looked_s[0] < WITHIN_S:
            return "it moves jobs, and there are too many such plans to look into"
        self._looked_s.append(now_s)
        if moved_jobs(plan, previous, self._over()):
            # Its leader may have read of a job's end before we did.
            await self._view.read_jobs()
        moved = moved_jobs(plan, previous, self._over())
        asked = self._chosen(plan, moved, known.ended_by(plan, self._over()))
        robbed = await asyncio.gather(*(self._robbed(job, moved.get(job), plan, known) for job in asked))
        living = next((job for job in robbed if job is not None), None)
        if living is None:
            return ""
        return f"job {living.job[:8]}: it moves generation {living.generation}, which runs well"

    def _known(self, plan: Plan, previous: Plan | None) -> Generations:
        known = Generations()
        for other in self._view.plans.values():
            if other.fence < plan.fence:
                known.add(other)
        if previous is not None:
            known.add(previous)
        return known

    def _over(self) -> set[JobId]:
        return {job for job, entry in self._book.jobs.items() if entry.over}

    def _chosen(self, plan: Plan, moved: Mapping[JobId, JobPlan], ended: Collection[JobId]) -> set[JobId]:
        """Jobs to ask about: those that we take part in, or are to, and a few others."""
        near = {job.job for job in (*plan.jobs, *moved.values()) if self._own in job.peers} & set(ended)
        return near | _sample(moved.keys() - near) | _sample(set(ended) - moved.keys() - near)

    async def _robbed(
        self, job: JobId, obeyed: JobPlan | None, plan: Plan, known: Generations
    ) -> JobPlan | None:
        """The generation of the job that runs and that the plan ends: the one obeyed, or any with effect."""
        planned = next((other for other in plan.jobs if other.job == job and other.clusters), None)
        others = [other for other in known.newest(job) if other not in (obeyed, planned)]
        members = {
            other: _sample(other.peers, MEMBERS_ASKED)
            for other in (obeyed, planned, *others)
            if other is not None
        }
        asked = OverviewAsked(job=job)
        peers = {peer for of_one in members.values() for peer in of_one}
        answers = await survey(self._rpc, self._own, self._hosts.overview(asked), peers, asked)

        def words(of: JobPlan) -> list[Said]:
            return [said_of(job, answers[peer]) for peer in members[of] if peer in answers]

        def effective(of: JobPlan) -> bool:
            return has_effect(of.generation, words(of), len(members[of]))

        async def lasts(of: JobPlan) -> bool:
            if self._own in of.peers and not await self._hosts.run_well(of):
                return False
            return lives(of.generation, words(of))

        running = [obeyed] if obeyed is not None and await lasts(obeyed) else []
        for old in (*running, *filter(effective, others)):
            elders = self._view.elders(old.generation)
            new = successor(old, () if planned is None else (planned,), elders)
            if new is not None and effective(new):
                continue
            views = {peer: view for peer, told in answers.items() for view in told.stages if view.job == job}
            if planned is None or self._against(old, planned, plan.fence, merged_pieces(views)):
                return old
        return None

    def _against(self, old: JobPlan, new: JobPlan, fence: Fence, pieces: Sequence[Piece]) -> str:
        entry = self._book.jobs.get(old.job)
        return objection(
            old,
            new,
            fence,
            spec=None if entry is None else entry.spec,
            capabilities=self._view.capabilities,
            elders=self._view.elders(old.generation),
            pieces=pieces,
        )


def _sample(of: Collection[Name], most: int = JOBS_ASKED_FOR) -> set[Name]:
    return set(random.sample(sorted(of), min(most, len(of))))
