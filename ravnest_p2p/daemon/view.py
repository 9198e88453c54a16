"""What one peer currently reads from the directory: who offers what, which jobs wait, who holds tickets and
plans.

The directory is read on a timer; this module turns records into plain values and notes what has changed,
and judges nothing beyond what a record itself proves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Collection, Sequence

from ravnest_p2p.core.capability import checked
from ravnest_p2p.core.claims import bounded
from ravnest_p2p.core.errors import RavnestError
from ravnest_p2p.core.planning.identity import plan_hash
from ravnest_p2p.core.types import Capability, Generation, JobId, JobPhase, PeerId, Plan
from ravnest_p2p.core.wording import peer_text
from ravnest_p2p.daemon.jobbook import JobBook
from ravnest_p2p.network.directory import Directory
from ravnest_p2p.network.records import (
    CapabilityRecord,
    JobRecord,
    PlanRecord,
    Sealed,
    TicketRecord,
)
from ravnest_p2p.network.records_keys import cancels_key, jobs_key, plan_key, tickets_key

log = logging.getLogger(__name__)

MAX_PLANS = 64
MAX_REMEMBERED = 16_384
ELDER_S = 600.0
"""Known for so long, a peer is no stranger to any generation."""
HEARD_OF_S = 30.0
"""Within which a newcomer's record has reached whoever leads."""

CANCELLED = "cancelled by its requester"


class SwarmView:
    """Records as values.

    Attributes:
        capabilities: of the peers that are online, by peer.
        tickets: of the epoch asked for, by peer.
        plans: published plans by hash, the newest few.
        submitted: jobs in order of submission; `requesters` says by whom.
        lending: peers that lend compute, each with how often it was seen to start anew.
    """

    def __init__(self, directory: Directory, swarm: str, book: JobBook) -> None:
        self._directory = directory
        self._swarm = swarm
        self._book = book
        self.capabilities: dict[PeerId, Capability] = {}
        self._first_seen_s: dict[PeerId, float] = {}
        self._taken_up_s: dict[Generation, float] = {}
        self.epochs_s: dict[PeerId, float] = {}
        self.tickets: dict[PeerId, TicketRecord] = {}
        self.plans: OrderedDict[str, Plan] = OrderedDict()
        self._sealed_plans: dict[str, bytes] = {}
        self.submitted: list[JobId] = []
        self.requesters: dict[JobId, PeerId] = {}
        self.lending: frozenset[tuple[PeerId, int]] = frozenset()
        self._starts: dict[PeerId, tuple[float, int]] = {}
        self._bounded: set[PeerId] = set()

    async def read_epoch(self, epoch: int) -> list[Plan]:
        """Read tickets and plans of the epoch; returns the plans."""
        tickets, plans = await asyncio.gather(
            self._directory.fetch(tickets_key(self._swarm, epoch)), self.read_plans(epoch)
        )
        self.tickets = {
            sealed.peer: sealed.record
            for sealed in tickets
            if isinstance(sealed.record, TicketRecord) and sealed.record.epoch == epoch
        }
        return plans

    async def read_plans(self, epoch: int) -> list[Plan]:
        """Read the plans of an epoch."""
        found = await self._directory.fetch(plan_key(self._swarm, epoch))
        return [plan for sealed in found if (plan := self.take_plan(sealed)) is not None]

    def take_plan(self, sealed: Sealed) -> Plan | None:
        """Note a published plan; its author is proven by the seal."""
        if not isinstance(sealed.record, PlanRecord):
            return None
        plan = sealed.record.plan
        digest = plan_hash(plan)
        self.plans[digest] = plan
        self._sealed_plans[digest] = sealed.data
        while len(self.plans) > MAX_PLANS:
            self._sealed_plans.pop(self.plans.popitem(last=False)[0], None)
        return plan

    def sealed_plan(self, digest: str) -> bytes | None:
        """A noted plan as its author sealed it; None for an own one, or one that is not among the newest."""
        return self._sealed_plans.get(digest)

    async def read_peers(self) -> None:
        """Read everybody's capability."""
        found: dict[PeerId, Capability] = {}
        for sealed in await self._directory.capabilities():
            if isinstance(sealed.record, CapabilityRecord):
                try:
                    capability = checked(sealed.record.capability)
                except RavnestError as error:
                    log.info("the capability of %s is senseless: %s", sealed.peer, error)
                    continue
                self.epochs_s[sealed.peer] = sealed.record.epoch_s
                if capability.online:
                    found[sealed.peer] = capability
        self.capabilities = bounded(found)
        self._tell_bounded(found)
        self._remember(found)
        self._starts = {peer: self._start(peer, offer.uptime_s) for peer, offer in found.items()}
        self.lending = frozenset((p, self._starts[p][1]) for p, offer in found.items() if offer.memory_bytes)

    def _tell_bounded(self, claimed: dict[PeerId, Capability]) -> None:
        """Say once of whom we believe less than it claims."""
        bounded_now = {peer for peer, offer in claimed.items() if offer != self.capabilities[peer]}
        for peer in sorted(bounded_now - self._bounded):
            claim, taken = claimed[peer], self.capabilities[peer]
            log.info(
                "%s claims %.1f Mbit/s up and %.1f down; as others measured, it counts with %.1f and %.1f",
                peer_text(peer),
                *(bps / 1e6 for bps in (claim.up_bps, claim.down_bps, taken.up_bps, taken.down_bps)),
            )
        self._bounded = bounded_now

    def taken_up(self, plan: Plan) -> None:
        """The plan is obeyed from now on; who is known by now is an elder to its new generations."""
        known, now_s = self._taken_up_s, time.monotonic()
        self._taken_up_s = {job.generation: known.get(job.generation, now_s) for job in plan.jobs}

    def elders(self, generation: Generation) -> set[PeerId]:
        """Peers that are no strangers to this generation: known since before it, or for long."""
        now_s = time.monotonic()
        until_s = max(self._taken_up_s.get(generation, now_s), now_s - ELDER_S)
        return {peer for peer, seen_s in self._first_seen_s.items() if seen_s <= until_s}

    def settled(self) -> set[PeerId]:
        """Lending peers that everybody has had the time to hear of."""
        since_s = time.monotonic() - HEARD_OF_S
        return {peer for peer, _ in self.lending if self._first_seen_s.get(peer, since_s + 1) <= since_s}

    def _remember(self, online: Collection[PeerId]) -> None:
        now_s = time.monotonic()
        for peer in online:
            self._first_seen_s.setdefault(peer, now_s)
        if len(self._first_seen_s) > MAX_REMEMBERED:
            self._first_seen_s = {peer: self._first_seen_s[peer] for peer in online}

    def _start(self, peer: PeerId, uptime_s: float) -> tuple[float, int]:
        """Its uptime, and how often that fell: a killed peer may be back before its record has expired."""
        before_s, starts = self._starts.get(peer, (0.0, 0))
        return uptime_s, starts + (uptime_s < before_s)

    async def read_jobs(self) -> None:
        """Read submitted and cancelled jobs, and remember the new ones."""
        jobs, cancels = await asyncio.gather(
            self._directory.fetch(jobs_key(self._swarm)), self._directory.fetch(cancels_key(self._swarm))
        )
        records = sorted(
            (s for s in jobs if isinstance(s.record, JobRecord)),
            key=lambda s: (s.record.created_at_s, s.record.job),  # type: ignore[union-attr]
        )
        requesters: dict[JobId, PeerId] = {}
        for sealed in records:
            record = sealed.record
            assert isinstance(record, JobRecord)
            if record.job not in self._book.jobs and not self._book.has_room():
                log.warning("job %s is not taken in: too many jobs wait already", record.job[:8])
                continue
            requesters.setdefault(record.job, sealed.peer)
            entry = self._book.entry(record.job)
            if not entry.sealed:
                entry.sealed = sealed.data
                self._book.save()
        self.requesters, self.submitted = requesters, list(requesters)
        self._take_cancels(requesters, cancels)

    def _take_cancels(self, requesters: dict[JobId, PeerId], cancels: Sequence[Sealed]) -> None:
        for sealed in cancels:
            job = getattr(sealed.record, "job", None)
            if job in requesters and requesters[job] == sealed.peer and not self._book.entry(job).over:
                entry = self._book.entry(job)
                entry.outcome, entry.reason = JobPhase.CANCELLED, CANCELLED
                self._book.save()
