"""Saved pieces of one job at this peer: its own and copies for others, kept, spread, and let go in time.

A piece that lies on one disk only is lost with its peer, and with it the round. So each is offered to a few
other peers: standbys first, then the next members.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from ravnest_p2p.core.errors import RemoteFault
from ravnest_p2p.core.types import BlobHash, JobId, JobPlan, Piece
from ravnest_p2p.daemon.host_deps import HostDeps
from ravnest_p2p.daemon.jobbook import piece_owner
from ravnest_p2p.daemon.messages import PieceSaved
from ravnest_p2p.daemon.peer_messages import KEEP, KeepAsked, plain

log = logging.getLogger(__name__)

COPIES = 2
KEEP_TIMEOUT_S = 30.0


class Pieces:
    def __init__(self, job: JobId, deps: HostDeps) -> None:
        self._job = job
        self._deps = deps
        self._spreading: asyncio.Task[None] | None = None

    async def saved(self, plan: JobPlan, report: PieceSaved, folder: Path) -> None:
        """Take over the file that the worker has just written, and have others keep copies.

        Raises:
            RemoteFault: the worker names a file outside its folder.
        """
        blob = await asyncio.to_thread(self._take, Path(report.path), folder)
        piece = Piece(report.lo, report.hi, report.batches_done, report.version, blob, (self._deps.own,))
        self.keep(piece)
        # While copies of one round are still under way, those of the next are left out: the newest counts.
        if self._spreading is None or self._spreading.done():
            self._spreading = asyncio.create_task(self._spread(plan, piece))

    def keep(self, piece: Piece) -> None:
        """Pin a piece that lies in the store, and let those go that it makes superfluous."""
        store = self._deps.files.store
        store.pin(piece_owner(piece), piece.blob)
        for old in self._deps.book.add_piece(self._job, piece):
            store.unpin(piece_owner(old))

    def close(self) -> None:
        if self._spreading is not None:
            self._spreading.cancel()

    def _take(self, path: Path, folder: Path) -> BlobHash:
        if path.resolve().parent != folder.resolve():
            raise RemoteFault(f"the worker names a piece outside its folder: {path}")
        blob = self._deps.files.store.put_file(path)
        path.unlink(missing_ok=True)
        return blob

    async def _spread(self, plan: JobPlan, piece: Piece) -> None:
        members = [*plan.peers, *plan.standbys]
        here = members.index(self._deps.own)
        others = [*plan.standbys, *members[here + 1 :], *members[:here]]
        asked = plain(KeepAsked(job=self._job, piece=piece))
        for peer in [peer for peer in dict.fromkeys(others) if peer != self._deps.own][:COPIES]:
            try:
                await self._deps.rpc.call(peer, KEEP, asked, KEEP_TIMEOUT_S)
            except RemoteFault as error:
                log.debug("job %s: no copy of a piece at %s: %s", self._job[:8], peer, error)
