"""Where a job's blobs come from: the own store, else whoever says that it holds them.

Holders are found in three ways, in this order: named by a saved piece, announced in the directory for the
whole job (one record a peer and job, under the manifest's hash), and the peers of the plan.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from ravnest_p2p.core.errors import BlobError, PeerUnreachableError
from ravnest_p2p.core.types import BlobHash, JobId, JobSpec, PeerId, Piece
from ravnest_p2p.network.blob_exchange import BlobExchange
from ravnest_p2p.network.blobs import BlobStore
from ravnest_p2p.network.directory import Directory
from ravnest_p2p.network.records import ProviderRecord
from ravnest_p2p.network.records_keys import blob_key
from ravnest_p2p.network.records_manifest import MAX_MANIFEST_BYTES, parse_manifest

log = logging.getLogger(__name__)

FETCH_TIMEOUT_S = 300.0
MAX_BLOB_BYTES = 64 * 1024**3
PROVIDER_TTL_S = 120.0


class JobFiles:
    """Blobs of jobs, fetched when needed and kept while the job lives."""

    def __init__(
        self, own: PeerId, store: BlobStore, exchange: BlobExchange, directory: Directory, swarm: str
    ) -> None:
        self.store = store
        self._own = own
        self._exchange = exchange
        self._directory = directory
        self._swarm = swarm
        self._announced: set[JobId] = set()

    async def manifest(self, job: JobId, peers: Iterable[PeerId] = ()) -> JobSpec:
        """The job's manifest, checked against the job's id, which is its hash."""
        path = await self.blob(job, BlobHash(job), peers, max_bytes=MAX_MANIFEST_BYTES)
        return parse_manifest(await asyncio.to_thread(path.read_bytes))

    async def blob(
        self, job: JobId, blob: BlobHash, peers: Iterable[PeerId] = (), *, max_bytes: int = MAX_BLOB_BYTES
    ) -> Path:
        """A file with the blob's bytes, pinned for the job.

        Raises:
            PeerUnreachableError, BlobError: nobody who was asked could give it; the message names them.
        """
        self.store.pin(job, blob)
        if self.store.has(blob):
            return self.store.path(blob)
        return await self._fetch(job, blob, await self._holders(job, peers), max_bytes)

    async def piece(self, piece: Piece, peers: Iterable[PeerId]) -> Path:
        """The file of a saved piece; its pins are the business of whoever keeps it."""
        if self.store.has(piece.blob):
            return self.store.path(piece.blob)
        holders = [peer for peer in dict.fromkeys([*piece.holders, *peers]) if peer != self._own]
        return await self._exchange.fetch(piece.blob, holders, MAX_BLOB_BYTES, FETCH_TIMEOUT_S)

    async def all_of(self, job: JobId, blobs: Sequence[BlobHash], peers: Iterable[PeerId] = ()) -> list[Path]:
        """Several blobs, in order, then announced to the directory."""
        for blob in blobs:
            self.store.pin(job, blob)
        missing = [blob for blob in blobs if not self.store.has(blob)]
        holders = await self._holders(job, peers) if missing else []
        for blob in missing:
            await self._fetch(job, blob, holders, MAX_BLOB_BYTES)
        await self.announce(job)
        return [self.store.path(blob) for blob in blobs]

    async def announce(self, job: JobId) -> None:
        """Tell the directory that this peer holds blobs of the job; repeated by `refresh`."""
        self._announced.add(job)
        size = self.store.size(BlobHash(job)) if self.store.has(BlobHash(job)) else 0
        await self._directory.publish(ProviderRecord(BlobHash(job), size), PROVIDER_TTL_S)

    async def refresh(self) -> None:
        """Announce everything again, before the records expire."""
        for job in list(self._announced):
            await self.announce(job)

    def drop(self, job: JobId) -> None:
        """The job is over and its result was taken or given up: its blobs may be evicted."""
        self._announced.discard(job)
        self.store.unpin(job)

    async def _fetch(self, job: JobId, blob: BlobHash, holders: Sequence[PeerId], max_bytes: int) -> Path:
        if not holders:
            raise BlobError(f"no peer is known to hold blob {blob[:12]}… of job {job[:12]}…")
        return await self._exchange.fetch(blob, holders, max_bytes, FETCH_TIMEOUT_S)

    async def _holders(self, job: JobId, peers: Iterable[PeerId]) -> list[PeerId]:
        try:
            sealed = await self._directory.fetch(blob_key(self._swarm, BlobHash(job)))
        except PeerUnreachableError as error:
            log.debug("no holders of job %s from the directory: %s", job[:12], error)
            sealed = []
        named = [*peers, *(record.peer for record in sealed)]
        return [peer for peer in dict.fromkeys(named) if peer != self._own]
