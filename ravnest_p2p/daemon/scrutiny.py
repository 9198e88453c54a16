"""Why a sound plan of another should not be obeyed as things are.

Three questions, the cheap ones first: whether it is clearly worse than simple rules (`planning.yardstick`),
whether it leaves out peers that live (`planning.turnout`), and whether it ends what runs well (`consent`).
What is asked of others is bounded, and so are the plans that are looked into.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict

from ravnest_p2p.core.planning.identity import plan_hash
from ravnest_p2p.core.planning.turnout import left_out
from ravnest_p2p.core.planning.yardstick import clearly_worse
from ravnest_p2p.core.types import PeerId, Plan
from ravnest_p2p.daemon.consent import Consent
from ravnest_p2p.daemon.hosts import Hosts
from ravnest_p2p.daemon.jobbook import JobBook
from ravnest_p2p.daemon.peer_messages import OverviewAsked
from ravnest_p2p.daemon.survey import survey
from ravnest_p2p.daemon.view import SwarmView
from ravnest_p2p.network.rpc import Rpc

ASKED = 8
"""Of those left out, whether they live."""

REMEMBERED = 64


class Scrutiny:
    """One peer's doubts about the plans of others.

    Attributes:
        consent: of those doubts, the one that a leader has to ask of its own plan too.
    """

    def __init__(self, own: PeerId, rpc: Rpc, view: SwarmView, book: JobBook, hosts: Hosts) -> None:
        self._own = own
        self._rpc = rpc
        self._view = view
        self._book = book
        self._hosts = hosts
        self.consent = Consent(own, rpc, view, book, hosts)
        self._found: OrderedDict[str, str] = OrderedDict()

    async def doubt(self, plan: Plan, previous: Plan | None) -> str:
        """Why the plan must not be obeyed as things are; empty if it may."""
        digest = plan_hash(plan)
        if digest not in self._found:
            self._found[digest] = await self._worse(plan) or await self._leaves_out(plan)
            while len(self._found) > REMEMBERED:
                self._found.popitem(last=False)
        return self._found[digest] or await self.consent.doubt(plan, previous)

    async def _worse(self, plan: Plan) -> str:
        jobs = {job: entry.spec for job, entry in self._book.jobs.items() if entry.spec and not entry.over}
        return await asyncio.to_thread(clearly_worse, plan, jobs, dict(self._view.capabilities))

    async def _leaves_out(self, plan: Plan) -> str:
        lending = self._view.settled()
        missed = left_out(plan, lending)
        if not missed:
            return ""
        asked = random.sample(missed, min(ASKED, len(missed)))
        question = OverviewAsked()
        answers = await survey(self._rpc, self._own, self._hosts.overview(question), asked, question)
        if 2 * len(answers) <= len(asked):
            return ""
        return (
            f"it leaves out {len(missed)} of {len(lending)} lending peers, "
            f"and {len(answers)} of {len(asked)} of these live"
        )
