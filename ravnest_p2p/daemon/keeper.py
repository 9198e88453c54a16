"""Holding copies for others: of saved pieces, so that they outlive their stage, and of a submitted job's
blobs.

Copies cost disk, so they are taken only for jobs in the directory, and pieces only from a peer that the
adopted plan gives a stage of that job. The blob store's capacity bounds the rest.
"""

from __future__ import annotations

import asyncio
import logging

from ravnest_p2p.core.errors import RavnestError, RemoteFault
from ravnest_p2p.core.types import BlobHash, JobId, PeerId, Piece
from ravnest_p2p.daemon.control import Control
from ravnest_p2p.daemon.hosts import Hosts
from ravnest_p2p.daemon.jobbook import JobBook
from ravnest_p2p.daemon.peer_messages import KeepAsked
from ravnest_p2p.daemon.session import Session

log = logging.getLogger(__name__)

MAX_RUNNING = 8


class Keeper:
    def __init__(self, session: Session, hosts: Hosts, control: Control, book: JobBook) -> None:
        self._session = session
        self._hosts = hosts
        self._control = control
        self._book = book
        self._running: set[asyncio.Task[None]] = set()

    async def keep(self, peer: PeerId, asked: KeepAsked) -> None:
        """Take a copy of a piece now, or of a job's blobs in the background.

        Raises:
            RemoteFault: the peer may not ask for it, or the copy could not be had.
        """
        if asked.piece is not None:
            await self._keep_piece(peer, asked.job, asked.piece)
        if asked.blobs:
            await self._keep_job(peer, asked.job, asked.blobs)

    async def _keep_piece(self, peer: PeerId, job: JobId, piece: Piece) -> None:
        plan = self._control.plan
        members = {
            p for part in (plan.jobs if plan is not None else ()) if part.job == job for p in part.peers
        }
        if peer not in members:
            raise RemoteFault(f"…{peer[-8:]} has no stage of job {job[:8]} in the plan that this peer obeys")
        await self._session.files.piece(piece, [peer])
        self._hosts.keep(job, Piece(piece.lo, piece.hi, piece.batches_done, piece.version, piece.blob, ()))

    async def _keep_job(self, peer: PeerId, job: JobId, blobs: tuple[BlobHash, ...]) -> None:
        if len(self._running) >= MAX_RUNNING:
            raise RemoteFault("this peer copies as many jobs as it can at once; ask another one")
        await self._control.view.read_jobs()
        if job not in self._book.jobs:
            raise RemoteFault(f"job {job[:8]} is not in the directory")
        task = asyncio.create_task(self._copy(peer, job, blobs))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _copy(self, peer: PeerId, job: JobId, blobs: tuple[BlobHash, ...]) -> None:
        try:
            await self._session.files.all_of(job, list(blobs), [peer])
        except (RavnestError, OSError) as error:
            log.info("job %s: its blobs could not be copied: %s", job[:8], error)
