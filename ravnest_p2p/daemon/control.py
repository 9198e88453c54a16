"""The control loop of one peer: reads the directory, runs the election, obeys the adopted plan.

`core.election` decides; this module feeds it (tickets, plans with their verdicts, reasons why the adopted
plan is stale) and carries out what it answers. Nothing here trains; nothing here waits longer than one
round of calls.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from math import inf

from ravnest_p2p.core.ballot import (
    Action,
    Adopt,
    DrawTicket,
    ElectionConfig,
    Explain,
    Expose,
    MakePlan,
    PlanHeader,
    PublishTicket,
    Reconsider,
    Refuse,
)
from ravnest_p2p.core.election import Election
from ravnest_p2p.core.errors import RavnestError
from ravnest_p2p.core.planning.identity import plan_hash
from ravnest_p2p.core.types import Fence, JobId, JobPhase, JobPlan, PeerId, Plan
from ravnest_p2p.daemon.hosts import Hosts
from ravnest_p2p.daemon.jobbook import JobBook
from ravnest_p2p.daemon.leader import Leader
from ravnest_p2p.daemon.notices import Notices
from ravnest_p2p.daemon.peer_messages import (
    MAX_REFUSALS,
    REPLAN,
    BallotTold,
    Refusal,
    ReplanAsked,
    plain,
)
from ravnest_p2p.daemon.plan_post import PlanPost
from ravnest_p2p.daemon.scrutiny import Scrutiny
from ravnest_p2p.daemon.session import Session
from ravnest_p2p.daemon.survey import ask_outcome
from ravnest_p2p.daemon.view import SwarmView
from ravnest_p2p.network.identity import Identity
from ravnest_p2p.network.p2pd_waits import bounded
from ravnest_p2p.network.records import PlanRecord, TicketRecord, make_ticket, seal, unseal

log = logging.getLogger(__name__)

TICK_S = 0.5
READ_EPOCH_S = 2.0
READ_PEERS_S = 4.0
PUSH_TIMEOUT_S = 3.0
TOLD_AT_ONCE = 16
MAX_PUSHED = 16
HEARD_S = 2.0
"""Between two reasons to plan anew from one peer: planning costs a survey of the swarm."""
FIRST_RETRY_S = 3.0
LAST_RETRY_S = 300.0


class Control:
    """Runs for one session; what outlives it (the book and the hosts) is handed in."""

    def __init__(
        self,
        *,
        identity: Identity,
        swarm: str,
        config: ElectionConfig,
        session: Session,
        book: JobBook,
        hosts: Hosts,
        eligible: bool,
        plan: Plan | None,
    ) -> None:
        self._identity = identity
        self._own: PeerId = identity.peer_id
        self._swarm = swarm
        self._session = session
        self._book = book
        self._hosts = hosts
        self.view = SwarmView(session.directory, swarm, book)
        self.leader = Leader(self._own, swarm, session, self.view, book, hosts.overview, config.term_s / 2)
        self._scrutiny = Scrutiny(self._own, session.rpc, self.view, book, hosts)
        self._post = PlanPost(session.rpc)
        self.epoch_s = config.epoch_s
        self._ticket_ttl_s = 2 * config.epoch_s
        self._shortest_term_s = config.min_term_s
        self._notices = Notices(session.directory, self._ticket_ttl_s)
        now_s = session.directory.now_s()
        self.election = Election(self._own, config, now_s, adopted=book.adopted, eligible=eligible)
        self.plan = plan
        self._ticket: TicketRecord | None = None
        self._recent = {""}
        self._pushed: deque[Plan] = deque(maxlen=MAX_PUSHED)
        self._poked = asyncio.Event()
        self._asked_reason = ""
        self._heard_s: dict[PeerId, float] = {}
        self._retries: dict[JobId, tuple[float, float]] = {}
        self._planned_lending: frozenset[tuple[PeerId, int]] = frozenset()
        self._unheard: frozenset[PeerId] = frozenset()
        self._refused: deque[Refusal] = deque(maxlen=MAX_REFUSALS)
        if book.adopted is not None:
            self._recent.add(book.adopted.plan_hash)

    async def run(self) -> None:
        """Until cancelled."""
        try:
            await self._run()
        finally:
            await asyncio.gather(self._post.close(), self.leader.warmup.close())

    async def _run(self) -> None:
        read_epoch_s = read_peers_s = 0.0
        while True:
            now_s = time.monotonic()
            if now_s - read_peers_s >= READ_PEERS_S:
                read_peers_s = now_s
                await self._guarded(self._read_swarm)
            if now_s - read_epoch_s >= READ_EPOCH_S:
                read_epoch_s = now_s
                await self._guarded(self._read_epoch)
            await self._guarded(self._step)
            try:
                await bounded(self._poked.wait(), TICK_S)
            except asyncio.TimeoutError:
                pass
            self._poked.clear()

    def poke(self) -> None:
        """Something has happened: do not wait for the next tick."""
        self._poked.set()

    async def tell_stale(self, reason: str) -> None:
        """Tell those who may lead next that the adopted plan no longer holds, ourselves included."""
        self.stale(reason)
        tickets = self.view.tickets
        ticket_order = sorted(tickets, key=lambda peer: (tickets[peer].value, peer))
        members = [peer for job in self.plan.jobs for peer in job.peers] if self.plan is not None else []
        told = [peer for peer in dict.fromkeys([*ticket_order, *members]) if peer != self._own][:TOLD_AT_ONCE]
        asked = plain(ReplanAsked(reason=reason[:1900]))
        await asyncio.gather(
            *(self._session.rpc.call(peer, REPLAN, asked, PUSH_TIMEOUT_S) for peer in told),
            return_exceptions=True,
        )

    def stale(self, reason: str, peer: PeerId | None = None) -> None:
        """Somebody says that the adopted plan no longer holds; a peer is heard once in a while only."""
        if peer is not None:
            now_s = time.monotonic()
            if peer not in self.view.capabilities or now_s - self._heard_s.get(peer, -HEARD_S) < HEARD_S:
                return
            self._heard_s[peer] = now_s
        self._asked_reason = reason
        self.poke()

    def ballot(self) -> BallotTold:
        """Where this peer stands in the election."""
        election, adopted = self.election, self.election.adopted
        return BallotTold(
            epoch=election.epoch,
            term=election.term,
            phase=election.phase,
            leader=election.leader,
            obeys=adopted.fence if adopted is not None else None,
            plan_hash=adopted.plan_hash if adopted is not None else "",
            refused=tuple(self._refused),
        )

    def reachable(self, peer: PeerId, answers: bool) -> None:
        """A co-member has been silent for long, or speaks again: a dead one is not waited for as a leader."""
        if answers:
            self.election.peer_back(peer)
        else:
            self.election.peer_gone(peer)
            self.poke()

    async def plan_pushed(self, data: bytes) -> None:
        """A plan came straight from its leader, ahead of the directory.

        Raises:
            RecordError: the record is not one that we would take from the directory (remote's fault).
        """
        sealed = unseal(data, swarm=self._swarm, now_s=self._session.directory.now_s(), kind=PlanRecord)
        known = set(self.view.plans)
        plan = self.view.take_plan(sealed)
        if plan is not None and plan_hash(plan) not in known:
            self._pushed.append(plan)
            self.poke()

    async def _guarded(self, step: Callable[[], Awaitable[None]]) -> None:
        """A failure of one round must not end the loop: it is logged, and the next round tries again."""
        try:
            await step()
        except RavnestError as error:
            log.warning("%s", error)
        except (OSError, asyncio.TimeoutError) as error:
            log.warning("the control loop goes on after: %r", error)
        except Exception:
            log.exception("the control loop goes on after an error of its own")

    async def _read_swarm(self) -> None:
        await asyncio.gather(self.view.read_peers(), self.view.read_jobs())
        self.election.expect_peers(len(self.view.capabilities))
        self.leader.warmup.expect(len(self.view.lending))

    async def _read_epoch(self) -> None:
        epoch = self.election.epoch
        plans = await self.view.read_epoch(epoch)
        tickets = self.view.tickets
        if not all(self._knows(ticket.previous_hash) for ticket in tickets.values()):
            # Tickets name the plan before them, of the epoch before. Whoever has just started may have to ask
            # more than once, since the directory answers little until it has found its neighbours.
            await self.view.read_plans(epoch - 1)
        for peer, ticket in tickets.items():
            if self._knows(ticket.previous_hash) or peer == self._own:
                self.election.ticket_seen(epoch, peer, ticket.value)
        for plan in sorted(plans, key=lambda p: p.fence):
            await self._consider(plan)
        await self._notices.repeat(epoch, [*tickets.values(), *map(PlanRecord, plans)])

    def _knows(self, plan_hash: str) -> bool:
        return plan_hash in self._recent or plan_hash in self.view.plans

    async def _consider(self, plan: Plan) -> None:
        """Judge a published plan, unless it is below what we obey already."""
        adopted = self.election.adopted
        if adopted is not None and plan.fence < adopted.fence:
            await self._act(self.election.plan_heard(plan.fence, plan.leader, plan_hash(plan)))
            return
        previous = self._before(plan.fence)
        header = self.leader.judged(plan, previous)
        if not header.verdict and self.election.deserves_a_look(header, self._session.directory.now_s()):
            header = replace(header, doubt=await self._scrutiny.doubt(plan, previous))
        await self._act(self.election.plan_seen(header, self._session.directory.now_s()))

    async def _step(self) -> None:
        while self._pushed:
            await self._consider(self._pushed.popleft())
        self.election.replan_wanted(self._stale_reason())
        await self._act(self.election.poll(self._session.directory.now_s()))

    async def _act(self, actions: Sequence[Action]) -> None:
        for action in actions:
            await self._perform(action)

    async def _perform(self, action: Action) -> None:
        match action:
            case DrawTicket(epoch=epoch, previous_hash=previous_hash):
                self._ticket = make_ticket(
                    self._identity, swarm=self._swarm, epoch=epoch, previous_hash=previous_hash
                )
                self.election.own_ticket(epoch, self._ticket.value)
                self.poke()
            case PublishTicket():
                if self._ticket is not None:
                    await self._notices.say(self._ticket)
                    self.election.ticket_seen(self._ticket.epoch, self._own, self._ticket.value)
            case MakePlan(fence=fence):
                await self._lead(fence)
            case Adopt(fence=fence, plan_hash=digest):
                await self._adopt(fence, digest)
            case Reconsider(plan_hash=digest):
                if digest in self.view.plans:
                    await self._consider(self.view.plans[digest])
            case Expose(leader=leader, plan_hashes=digests):
                proof = [sealed for digest in digests if (sealed := self.view.sealed_plan(digest))]
                self._post.hand_on(proof, self.view.capabilities.keys() - {self._own, leader})
            case Explain(text=text):
                log.info("%s", text)
            case Refuse(fence=fence, leader=leader, why=why):
                self._refused.append(
                    Refusal(epoch=fence.epoch, term=fence.term, leader=leader, why=why[:500])
                )

    async def _lead(self, fence: Fence) -> None:
        previous = self._before(fence)
        try:
            plan = await self.leader.plan(fence, previous)
            doubt = await self._scrutiny.consent.doubt(plan, previous)
        except RavnestError as error:
            doubt = str(error)
        if doubt:
            await self._act(self.election.plan_failed(fence, doubt))
            return
        self.view.plans[plan_hash(plan)] = plan
        header = PlanHeader(fence, self._own, plan_hash(plan))
        actions = self.election.plan_seen(header, self._session.directory.now_s())
        if any(isinstance(action, Adopt) for action in actions):
            # On disk before anybody sees it: after a crash this peer must not lead the same fence again.
            self._take_up(plan)
            await self._notices.say(PlanRecord(plan))
            await self._push(plan)
        await self._act(actions)

    def _before(self, fence: Fence) -> Plan | None:
        """The plan before: the one obeyed, else (after a restart) the newest that was published."""
        if self.plan is not None:
            return self.plan
        published = (plan for plan in self.view.plans.values() if plan.fence < fence)
        return max(published, key=lambda plan: plan.fence, default=None)

    async def _push(self, plan: Plan) -> None:
        """Hand the plan to everybody that it concerns, and to a few more."""
        now_s = self._session.directory.now_s()
        record = PlanRecord(plan)
        sealed = seal(self._identity, record, swarm=self._swarm, ttl_s=self._ticket_ttl_s, now_s=now_s)
        members = [peer for job in plan.jobs for peer in (*job.peers, *job.standbys)]
        told = (peer for peer in (*members, *self.view.capabilities) if peer != self._own)
        await self._post.push(sealed, told)

    async def _adopt(self, fence: Fence, digest: str) -> None:
        plan = self.view.plans.get(digest)
        if plan is None:
            log.error("epoch %d term %d: the adopted plan is not at hand", *fence)
            return
        self._take_up(plan)
        sealed = self.view.sealed_plan(digest)
        if sealed is not None:
            self._post.hand_on([sealed], self.view.capabilities.keys() - {self._own, plan.leader})
        await self._hosts.obey(plan)
        await self._learn_outcomes(plan)

    def _take_up(self, plan: Plan) -> None:
        """Remember the adopted plan, first of all on disk."""
        self.plan = plan
        self._book.adopted = self.election.adopted
        self._planned_lending = self.view.lending
        self._unheard = self.leader.unheard if plan.leader == self._own else frozenset()
        self._asked_reason = ""
        self.view.taken_up(plan)
        for job_plan in plan.jobs:
            self._note_lineage(job_plan)
        self._book.save()

    def _note_lineage(self, plan: JobPlan) -> None:
        lineage = self._book.entry(plan.job).lineage
        if plan.clusters and (not lineage or lineage[-1][0] != plan.generation):
            lineage.append((plan.generation, plan.batches_done))

    async def _learn_outcomes(self, plan: Plan) -> None:
        """A job that the leader left out is over, as far as it knows: ask it, and stop asking for a plan."""
        planned = {job.job for job in plan.jobs}
        for job in self.view.submitted:
            entry = self._book.entry(job)
            if job in planned or entry.over or plan.leader == self._own:
                continue
            outcome = await ask_outcome(self._session.rpc, plan.leader, job)
            if outcome is not None:
                entry.outcome, entry.reason = outcome
                self._book.save()

    def _stale_reason(self) -> str:
        """Why the adopted plan should be replaced before the epoch ends; empty if it should not."""
        if self.plan is None:
            return ""
        planned = {job.job: job for job in self.plan.jobs}
        broken = self._hosts.broken(self.plan)
        if broken:
            return broken
        for job in planned:
            if self._book.entry(job).outcome is JobPhase.CANCELLED:
                return f"job {job[:8]} is cancelled"
        for job in self.view.submitted:
            if job not in planned and not self._book.entry(job).over and self._retry_due(job):
                return f"job {job[:8]} is not planned yet"
        newcomers = self.view.lending - self._planned_lending
        waiting = [job for job, plan in planned.items() if not plan.clusters]
        if waiting and newcomers:
            return f"new lending peers ({len(newcomers)}), while job {waiting[0][:8]} waits"
        unheard = self._unheard & self.view.capabilities.keys()
        if waiting and unheard and self._retry_due(waiting[0]):
            return f"job {waiting[0][:8]} waits, and was planned without {len(unheard)} that did not answer"
        return self._asked_reason

    def _retry_due(self, job: JobId) -> bool:
        """Whether to ask for a plan with this job now; less and less often while leaders leave it out.

        Asked for as long as the shortest term, since a younger one does not end.
        """
        asked_s, pause_s = self._retries.get(job, (-inf, FIRST_RETRY_S))
        now_s = time.monotonic()
        if now_s - asked_s < pause_s:
            return now_s - asked_s < self._shortest_term_s + 2 * TICK_S
        self._retries[job] = (now_s, min(2 * pause_s, LAST_RETRY_S))
        return True
