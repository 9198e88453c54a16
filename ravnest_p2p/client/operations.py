"""What a requester can do in a swarm, as trio functions; the synchronous and asyncio faces call them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trio

from ravnest_p2p.client.blobs import sha256_of
from ravnest_p2p.client.prepare import Prepared
from ravnest_p2p.client.progress import Progress
from ravnest_p2p.client.router import Patience, Router
from ravnest_p2p.client.session import FETCH_S, Advance, Session
from ravnest_p2p.client.timeline import MARGIN_S, JobTimeline
from ravnest_p2p.client.transport import transport
from ravnest_p2p.core.errors import BlobError, ConfigError, JobError, RemoteFault
from ravnest_p2p.core.types import BlobHash, JobId, JobPhase, JobSpec, PeerId
from ravnest_p2p.model.parse import Limits, parse_program
from ravnest_p2p.model.program import Program
from ravnest_p2p.network import gateway
from ravnest_p2p.network.identity import Identity
from ravnest_p2p.network.records import CancelRecord, JobRecord, seal
from ravnest_p2p.network.records_manifest import MAX_MANIFEST_BYTES, parse_manifest

CALL_S = 30.0
"""Patience of an ordinary call: how long an outage of all gateways may last."""
UPLOAD_S = 90.0
TAKE_S = 60.0
"""A peer writes to the directory, and asks others to keep copies, before it answers a record."""
_POLL_S = 0.5
_SPARE_DISK_BYTES = 64 * 1024 * 1024
_PROGRAM_BYTES = Limits().json_bytes


class Operations:
    """All requests of one connection. Runs in the portal's trio thread only."""

    def __init__(self, router: Router, identity: Identity) -> None:
        self._router = router
        self._identity = identity

    @property
    def peer_id(self) -> PeerId:
        """Who the requester is to the swarm."""
        return self._identity.peer_id

    async def ask(self, request: gateway.Request, patience_s: float = CALL_S) -> dict[str, Any]:
        """Any request that is answered by one map."""

        async def work(session: Session) -> dict[str, Any]:
            return await session.request(request)

        return await self._router.call(work, Patience(patience_s))

    async def entries(self, request: gateway.Request, name: str) -> list[dict[str, Any]]:
        """The list of maps in an answer."""
        found = (await self.ask(request)).get(name)
        if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
            raise RemoteFault(f"the peer answered {request.op} without a list of {name}")
        return found

    async def status(self, job: JobId) -> Progress:
        return Progress.of(await self.ask(gateway.Status(job=job)))

    async def news(self, job: JobId, seen: Progress | None, poll_s: float = _POLL_S) -> Progress:
        """The job's status as soon as it differs from `seen` in something that counts."""
        while True:
            progress = await self.status(job)
            if seen is None or progress.mark != seen.mark:
                return progress
            await trio.sleep(poll_s)

    async def trace(self, job: JobId, last_s: float) -> JobTimeline:
        """Every stage's timeline of the last seconds."""
        if not last_s > 0:
            raise ConfigError(f"the last {last_s:g} seconds are none")
        request = gateway.Trace(job=job, last_s=min(last_s + MARGIN_S, gateway.MAX_LAST_S))
        return JobTimeline.of(job, await self.ask(request), last_s)

    async def submit(self, prepared: Prepared, advance: Advance) -> JobId:
        """Upload what the gateway lacks, then hand the job in; the same gateway gets all of it."""
        patience = Patience(UPLOAD_S)

        async def work(session: Session) -> JobId:
            hello = await session.request(gateway.Hello())
            sent = 0

            def advanced(count: int) -> None:
                nonlocal sent
                sent += count
                patience.renew()
                advance(sent)

            for blob, path in prepared.blobs.items():
                await session.put_blob(blob, path, advanced)
            reply = await session.request(gateway.Submit(record=self._job_record(prepared, hello)), TAKE_S)
            if reply.get("job") != prepared.job:
                raise RemoteFault("the peer took in another job than the one handed in")
            return prepared.job

        return await self._router.call(work, patience)

    async def cancel(self, job: JobId) -> None:
        async def work(session: Session) -> None:
            hello = await session.request(gateway.Hello())
            now_s, swarm = _clock(hello), _swarm(hello)
            record = CancelRecord(job=job, requester=self.peer_id)
            sealed = seal(self._identity, record, swarm=swarm, ttl_s=CancelRecord.MAX_TTL_S, now_s=now_s)
            await session.request(gateway.Cancel(record=sealed), TAKE_S)

        await self._router.call(work, Patience(CALL_S))

    async def finish(self, job: JobId, timeout_s: float) -> None:
        """Wait until the job is done.

        Raises:
            JobError: it failed, was cancelled, or is not done within `timeout_s`.
        """
        progress: Progress | None = None
        with trio.move_on_after(timeout_s):
            while progress is None or not progress.over:
                progress = await self.news(job, progress)
        if progress is None or not progress.over:
            known = (
                f"{progress.phase.value}, {progress.batches_done}/{progress.total_batches}"
                if progress
                else "unknown"
            )
            raise JobError(
                f"job {job[:12]} is not done after {timeout_s:.0f} s ({known}); wait longer, or cancel it"
            )
        if progress.phase is not JobPhase.DONE:
            reason = progress.reason or "no reason was given"
            raise JobError(f"job {job[:12]} ended without a result: {progress.phase.value}: {reason}")

    async def pieces(self, job: JobId, folder: Path, advance: Advance) -> list[Path]:
        """Download the state of all layers of a job that is done, in layer order."""

        async def ask(session: Session) -> dict[str, Any]:
            return await session.request(gateway.Result(job=job), FETCH_S)

        reply = await self._router.call(ask, Patience(2 * FETCH_S))
        phase = reply.get("phase")
        if phase != JobPhase.DONE.value:
            raise JobError(f"job {job[:12]} has no result yet: it is {phase}")
        spec = await self.spec(job, folder)
        blobs = _cover(reply.get("pieces"), len(spec.layers))
        return [await self.download(blob, folder, advance) for blob in blobs]

    async def spec(self, job: JobId, folder: Path) -> JobSpec:
        """The job's manifest; its hash is the job's id, so nobody can forge it."""
        path = await self.download(BlobHash(job), folder, lambda _: None, MAX_MANIFEST_BYTES)
        return parse_manifest(await trio.Path(path).read_bytes())

    async def program(self, spec: JobSpec, folder: Path) -> Program:
        """The job's captured program."""
        path = await self.download(spec.program, folder, lambda _: None, _PROGRAM_BYTES)
        return await trio.to_thread.run_sync(parse_program, await trio.Path(path).read_bytes())

    async def download(
        self, blob: BlobHash, folder: Path, advance: Advance, limit: int | None = None
    ) -> Path:
        """One blob as a file in `folder`; taken up where another gateway failed, and checked against its
        hash."""
        done, part = folder / blob, folder / f"{blob}.part"
        if await trio.Path(done).exists():
            return done
        room = shutil.disk_usage(folder).free - _SPARE_DISK_BYTES
        patience = Patience(2 * FETCH_S)

        def advanced(count: int) -> None:
            patience.renew()
            advance(count)

        async def work(session: Session) -> None:
            await session.get_blob(blob, part, min(room, limit or room), advanced)
            if await trio.to_thread.run_sync(sha256_of, part) != blob:
                await trio.Path(part).unlink()
                raise BlobError(f"a peer sent something else for blob {blob}")

        await self._router.call(work, patience)
        await trio.Path(part).rename(done)
        return done

    def _job_record(self, prepared: Prepared, hello: dict[str, Any]) -> bytes:
        now_s = _clock(hello)
        record = JobRecord(
            job=prepared.job,
            manifest=BlobHash(prepared.job),
            manifest_bytes=prepared.manifest_bytes,
            name=prepared.spec.name,
            requester=self.peer_id,
            created_at_s=now_s,
        )
        return seal(self._identity, record, swarm=_swarm(hello), ttl_s=JobRecord.MAX_TTL_S, now_s=now_s)


async def run_operations(addresses: Sequence[str], identity: Identity, task_status: Any) -> None:
    """The portal's main task: a transport, and the operations over it, until cancelled."""
    async with transport(identity) as running:
        operations = Operations(Router(running, addresses), identity)
        task_status.started(operations)
        await trio.sleep_forever()


def _clock(hello: dict[str, Any]) -> float:
    """Directory time as the gateway sees it; this computer's clock may be off by more than records allow."""
    time_s = hello.get("time_s")
    return float(time_s) if isinstance(time_s, (int, float)) else time.time()


def _swarm(hello: dict[str, Any]) -> str:
    swarm = hello.get("swarm")
    if not isinstance(swarm, str):
        raise RemoteFault("the peer does not say which swarm it belongs to")
    return swarm


def _cover(pieces: object, layers: int) -> list[BlobHash]:
    """Blobs of pieces that cover layers [0, layers) once, in order."""
    blobs: list[BlobHash] = []
    reached = 0
    found = [piece for piece in pieces if isinstance(piece, dict)] if isinstance(pieces, list) else []
    usable = [p for p in found if isinstance(p.get("lo"), int) and isinstance(p.get("hi"), int)]
    for piece in sorted(usable, key=lambda p: (p["lo"], p["hi"])):
        if piece["lo"] == reached and piece["hi"] > reached and isinstance(piece.get("blob"), str):
            blobs.append(BlobHash(piece["blob"]))
            reached = piece["hi"]
    if reached != layers or any(len(b) != 64 or not set(b) <= set("0123456789abcdef") for b in blobs):
        raise RemoteFault(f"the result covers {reached} of {layers} layers; ask again in a moment")
    return blobs
