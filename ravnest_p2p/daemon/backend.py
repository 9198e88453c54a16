"""What requesters may ask of this peer: the gateway's backend.

Every answer is put together from the directory and from what peers say when asked; this peer speaks for the
swarm, not of itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ravnest_p2p import __version__
from ravnest_p2p.core.errors import BlobError, JobError, PeerUnreachableError, RemoteFault
from ravnest_p2p.core.planning.resume import resume_point
from ravnest_p2p.core.types import BlobHash, JobId, JobPhase, JobPlan, PeerId
from ravnest_p2p.daemon.control import Control
from ravnest_p2p.daemon.copies import shared_out
from ravnest_p2p.daemon.epoch_view import ask_ballots, epoch_view
from ravnest_p2p.daemon.hosts import Hosts
from ravnest_p2p.daemon.jobbook import JobBook, JobEntry, blobs_of
from ravnest_p2p.daemon.logbook import Logbook
from ravnest_p2p.daemon.peer_messages import (
    KEEP,
    LOGS,
    MAX_KEPT,
    TRACE,
    KeepAsked,
    LogsAsked,
    Overview,
    OverviewAsked,
    TraceAsked,
    plain,
)
from ravnest_p2p.daemon.session import Session
from ravnest_p2p.daemon.status import job_status
from ravnest_p2p.daemon.survey import merged_pieces, survey
from ravnest_p2p.daemon.timelines import collect, limit_for, of_one_generation, own_timeline
from ravnest_p2p.network.records import CancelRecord, JobRecord, unseal
from ravnest_p2p.network.records_manifest import parse_manifest

log = logging.getLogger(__name__)

ASKED_PEERS = 64
COPIES = 2
"""Of each blob of a job, beside the one at the peer that took it in."""
SPREAD_PEERS = 16
CALL_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Backend:
    """Implements `daemon.gateway.GatewayBackend` for one session."""

    own: PeerId
    swarm: str
    session: Session
    control: Control
    hosts: Hosts
    book: JobBook
    logbook: Logbook
    jobs_folder: Path
    addresses: Callable[[], Awaitable[list[str]]]

    async def hello(self) -> dict[str, Any]:
        return {
            "peer": self.own,
            "version": __version__,
            "swarm": self.swarm,
            "addresses": await self.addresses(),
            "time_s": self.session.directory.now_s(),
        }

    async def peers(self) -> list[dict[str, Any]]:
        """All peers with a capability record, and where those that answer can be dialled."""
        await self.control.view.read_peers()
        capabilities = self.control.view.capabilities
        answers = await self._survey(list(capabilities), OverviewAsked())
        plan = self.control.plan
        parts = {
            peer: {"job": job.job, "generation": str(job.generation), "cluster": c, "stage": s}
            for job in (plan.jobs if plan is not None else ())
            for c, cluster in enumerate(job.clusters)
            for s, peer in enumerate(stage.peer for stage in cluster.stages)
        }
        return [
            {
                "peer": peer,
                "version": offer.version,
                "addresses": list(answers[peer].addresses) if peer in answers else [],
                "answers": peer in answers,
                "devices": [
                    {"kind": d.kind, "memory_bytes": d.memory_bytes, "flops": d.flops} for d in offer.devices
                ],
                "memory_bytes": offer.memory_bytes,
                "flops": offer.flops,
                "up_bps": offer.up_bps,
                "down_bps": offer.down_bps,
                "coordinate": list(offer.coordinate.vector),
                "height_s": offer.coordinate.height_s,
                "reachability": offer.reachability.value,
                "uptime_s": offer.uptime_s,
                "reliability": offer.reliability,
                "assignment": parts.get(peer),
                "leader": plan is not None and plan.leader == peer,
            }
            for peer, offer in sorted(capabilities.items())
        ]

    async def epoch(self) -> dict[str, Any]:
        """Where the election stands, and who obeys and refused what."""
        view, control = self.control.view, self.control
        await view.read_peers()
        peers = list(view.capabilities)[:ASKED_PEERS]
        ballots = await ask_ballots(self.session.rpc, self.own, control.ballot(), peers)
        specs = {job: entry.spec for job, entry in self.book.jobs.items() if entry.spec is not None}
        now_s, epoch_s = self.session.directory.now_s(), control.epoch_s
        return epoch_view(
            control.ballot(),
            control.plan,
            ballots,
            specs,
            view.capabilities,
            epoch_s=epoch_s,
            ends_in_s=epoch_s - now_s % epoch_s,
        )

    async def jobs(self) -> list[dict[str, Any]]:
        await self.control.view.read_jobs()
        answers = await self._survey(list(self.control.view.capabilities), OverviewAsked())
        return [await self._status(job, entry, answers) for job, entry in self.book.jobs.items()]

    async def status(self, job: JobId) -> dict[str, Any]:
        entry = await self._entry(job)
        return await self._status(job, entry, await self._ask_about(job, losses=True))

    async def logs(self, job: JobId | None, after: int, limit: int) -> list[dict[str, Any]]:
        """Own lines, or all members' lines of one job, in order of time."""
        lines = [{"peer": self.own, **line} for line in self.logbook.lines(job, after, limit)]
        if job is None:
            return lines
        asked = plain(LogsAsked(job=job, after=after, limit=min(limit, 1000)))
        others = [peer for peer in list(self.control.view.capabilities)[:ASKED_PEERS] if peer != self.own]
        answers = await asyncio.gather(
            *(self.session.rpc.call(peer, LOGS, asked, CALL_TIMEOUT_S) for peer in others),
            return_exceptions=True,
        )
        for peer, answer in zip(others, answers, strict=True):
            if isinstance(answer, dict):
                lines += [{**line, "peer": peer} for line in answer.get("lines", []) if _is_line(line)]
        return sorted(lines, key=lambda line: line["seq"])[:limit]

    async def trace(self, job: JobId, last_s: float) -> dict[str, Any]:
        """All members' timelines of the job's newest generation."""
        await self._known(job)
        plan = self._plan_of(job)
        members = plan.peers if plan is not None else ()
        peers = members or list(dict.fromkeys([self.own, *self.control.view.capabilities]))[:ASKED_PEERS]
        asked = TraceAsked(job=job, last_s=last_s, limit=limit_for(len(peers)))

        async def ask(peer: PeerId, asked: TraceAsked) -> dict[str, Any]:
            if peer == self.own:
                return plain(await asyncio.to_thread(own_timeline, self.jobs_folder, asked))
            return await self.session.rpc.call(peer, TRACE, plain(asked), CALL_TIMEOUT_S)

        entry = self.book.entry(job)
        lineage = [generation for generation, _ in entry.lineage]
        found = of_one_generation(await collect(ask, peers, asked), plan, lineage)
        if found.told:
            return found.as_reply()
        if members and found.left_out:
            peer, reason = next(iter(found.left_out.items()))
            raise PeerUnreachableError(
                f"no member of job {job[:12]} tells its timeline; …{peer[-8:]}: {reason}"
            )
        if entry.over:
            raise JobError(f"nobody who trained job {job[:12]} is online, so there is no timeline of it")
        waits = plan.reason if plan is not None else "it is not in a plan yet"
        raise JobError(f"job {job[:12]} has not started: {waits or 'its peers start their workers'}")

    async def submit(self, sealed: bytes) -> JobId:
        """Take a job whose blobs lie in our store, and make it known."""
        opened = unseal(sealed, swarm=self.swarm, now_s=self.session.directory.now_s(), kind=JobRecord)
        record = opened.record
        assert isinstance(record, JobRecord)
        store = self.session.files.store
        if str(record.manifest) != record.job:
            raise RemoteFault("the job record names another manifest than the job's")
        if not store.has(record.manifest):
            raise BlobError(f"the manifest {record.manifest[:12]}… was not uploaded here: put it first")
        spec = parse_manifest(await asyncio.to_thread(store.path(record.manifest).read_bytes))
        missing = [blob for blob in blobs_of(spec) if not store.has(blob)]
        if missing:
            raise BlobError(
                f"{len(missing)} blobs of the job were not uploaded here, the first is {missing[0]}"
            )
        for blob in (record.manifest, *blobs_of(spec)):
            store.pin(record.job, blob)
        entry = self.book.entry(record.job)
        entry.sealed, entry.spec = sealed, spec
        self.book.save()
        await self.session.directory.republish(sealed)
        await self.session.files.announce(record.job)
        await self.control.view.read_jobs()
        log.info("job %s (%s) was submitted by …%s", record.job[:8], record.name, record.requester[-8:])
        await self._spread(record.job, (record.manifest, *blobs_of(spec)))
        await self.control.tell_stale(f"job {record.job[:8]} was submitted")
        return record.job

    async def cancel(self, sealed: bytes) -> None:
        """Make a requester's cancel record known."""
        opened = unseal(sealed, swarm=self.swarm, now_s=self.session.directory.now_s(), kind=CancelRecord)
        assert isinstance(opened.record, CancelRecord)
        await self.control.view.read_jobs()
        if opened.record.job not in self.control.view.submitted:
            raise JobError(f"no job {opened.record.job} is known to the swarm; `ravnest jobs` lists them")
        await self.session.directory.republish(sealed)
        await self.control.view.read_jobs()
        outcome = self.book.entry(opened.record.job).outcome
        if outcome is None:
            raise JobError("only the requester who submitted the job can cancel it")
        if outcome is not JobPhase.CANCELLED:
            raise JobError(f"the job is over already: {outcome.value}")
        await self.control.tell_stale(f"job {opened.record.job[:8]} is cancelled")

    async def result(self, job: JobId) -> dict[str, Any]:
        """Pieces of the newest complete round; the job's last one, if it is done."""
        entry = await self._entry(job)
        answers = await self._ask_about(job)
        status = await self._status(job, entry, answers)
        views = {p: view for p, overview in answers.items() for view in overview.stages if view.job == job}
        layers = len(entry.spec.layers) if entry.spec is not None else 0
        found = resume_point(merged_pieces(views), views, layers)
        batches_done, _, pieces = found if found is not None else (0, 0, ())
        return {
            "phase": status["phase"],
            "reason": status["reason"],
            "batches_done": batches_done,
            "pieces": [
                {
                    "lo": p.lo,
                    "hi": p.hi,
                    "blob": p.blob,
                    "batches_done": p.batches_done,
                    "holders": list(p.holders),
                }
                for p in pieces
            ],
        }

    async def fetch(self, blob: BlobHash) -> None:
        """Bring a blob of a known job into the store, so that the requester can take it from here."""
        answers = await self._survey(list(self.control.view.capabilities), OverviewAsked())
        for overview in answers.values():
            for view in overview.stages:
                for piece in view.pieces:
                    if piece.blob == blob:
                        holders = [
                            p
                            for p, o in answers.items()
                            if any(blob == q.blob for v in o.stages for q in v.pieces)
                        ]
                        await self.session.files.blob(view.job, blob, holders)
                        return
        for job, entry in self.book.jobs.items():
            if str(blob) == job or (entry.spec is not None and blob in blobs_of(entry.spec)):
                await self.session.files.blob(job, blob)
                return
        raise BlobError(f"no blob {blob[:12]}… belongs to a job that this peer knows")

    async def _known(self, job: JobId) -> None:
        await self.control.view.read_jobs()
        if job not in self.book.jobs:
            raise JobError(f"no job {job} is known to the swarm; `ravnest jobs` lists them")

    def _plan_of(self, job: JobId) -> JobPlan | None:
        plan = self.control.plan
        return next((part for part in (plan.jobs if plan is not None else ()) if part.job == job), None)

    async def _entry(self, job: JobId) -> JobEntry:
        await self._known(job)
        entry = self.book.entry(job)
        if entry.spec is None:
            entry.spec = await self.session.files.manifest(job, self.control.view.capabilities)
        return entry

    async def _ask_about(self, job: JobId, *, losses: bool = False) -> dict[PeerId, Overview]:
        plan = self._plan_of(job)
        asked = dict.fromkeys([*(plan.peers if plan is not None else ()), *self.control.view.capabilities])
        return await self._survey(list(asked), OverviewAsked(job=job, losses=losses))

    async def _survey(self, peers: list[PeerId], asked: OverviewAsked) -> dict[PeerId, Overview]:
        known = [self.own, *peers[:ASKED_PEERS]]
        return await survey(self.session.rpc, self.own, self.hosts.overview(asked), known, asked)

    async def _status(self, job: JobId, entry: JobEntry, answers: dict[PeerId, Overview]) -> dict[str, Any]:
        if entry.spec is None:
            try:
                entry.spec = await self.session.files.manifest(job, answers)
            except RemoteFault as error:
                log.debug("no manifest of job %s yet: %s", job[:8], error)
        offers = self.control.view.capabilities
        lending = [peer for peer in answers if peer in offers and offers[peer].memory_bytes]
        return job_status(job, entry, self.control.plan, answers, lending)

    async def _spread(self, job: JobId, blobs: tuple[BlobHash, ...]) -> None:
        """Have other peers copy the job's blobs, so that neither this peer nor the requester has to stay.

        Each takes some: the whole model need not fit on any of them.
        """
        offers = self.control.view.capabilities
        others = sorted((p for p in offers if p != self.own), key=lambda p: (-offers[p].memory_bytes, p))
        lending = [peer for peer in others if offers[peer].memory_bytes]
        chosen = (lending if len(lending) >= COPIES else others)[:SPREAD_PEERS]
        asked = [
            (peer, plain(KeepAsked(job=job, blobs=mine[start : start + MAX_KEPT])))
            for peer, mine in shared_out(blobs, chosen, COPIES).items()
            for start in range(0, len(mine), MAX_KEPT)
        ]
        answers = await asyncio.gather(
            *(self.session.rpc.call(peer, KEEP, body, CALL_TIMEOUT_S) for peer, body in asked),
            return_exceptions=True,
        )
        failed = [answer for answer in answers if isinstance(answer, BaseException)]
        if failed:
            log.warning(
                "job %s: %d of %d requests for copies failed: %s",
                job[:8],
                len(failed),
                len(answers),
                failed[0],
            )


def _is_line(line: object) -> bool:
    return isinstance(line, dict) and isinstance(line.get("seq"), int) and isinstance(line.get("text"), str)
