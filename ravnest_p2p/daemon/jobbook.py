"""What a peer remembers of jobs, also over its own death.

Problem: a peer that was killed comes back with saved pieces that the swarm may need, and must not obey a
plan older than one it has obeyed before. Solution: one small JSON file, replaced atomically whenever
something changes that others may rely on: the adopted plan's fence, the sealed job records, and which
pieces lie in the blob store.
"""

from __future__ import annotations

import base64
import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ravnest_p2p.core.ballot import Adopted
from ravnest_p2p.core.types import BlobHash, Fence, Generation, JobId, JobPhase, JobSpec, Piece
from ravnest_p2p.network.blobs import BlobStore
from ravnest_p2p.network.records_manifest import parse_manifest

log = logging.getLogger(__name__)

KEPT_ROUNDS = 2
"""The newest round may be incomplete in the swarm when a peer dies; then the one before is taken up."""
MAX_JOBS = 256


@dataclass(slots=True)
class JobEntry:
    """One known job.

    Attributes:
        sealed: the requester's record, as it goes into the directory.
        spec: its manifest, once fetched.
        pieces: saved state in this peer's store, its own and copies of others.
        lineage: generations in order, each with the batches done where it began: what was trained by whom.
        outcome: DONE, CANCELLED or FAILED once the job is over; `reason` says why.
    """

    sealed: bytes = b""
    spec: JobSpec | None = None
    pieces: list[Piece] = field(default_factory=list)
    lineage: list[tuple[Generation, int]] = field(default_factory=list)
    outcome: JobPhase | None = None
    reason: str = ""

    @property
    def over(self) -> bool:
        return self.outcome is not None


def piece_owner(piece: Piece) -> str:
    """Under which name a piece is pinned in the blob store."""
    return f"piece {piece.blob}"


def blobs_of(spec: JobSpec) -> list[BlobHash]:
    """Every blob that the manifest names, each once."""
    shards = [blob for field in spec.fields for blob, _ in field.shards]
    return list(dict.fromkeys([spec.program, *spec.weights_of(0, len(spec.layers)), *shards]))


_PIECES = TypeAdapter(list[Piece])
_LINEAGE = TypeAdapter(list[tuple[Generation, int]])


class JobBook:
    """The file `state.json` of a peer's home folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.jobs: dict[JobId, JobEntry] = {}
        self.adopted: Adopted | None = None
        self._load()

    def entry(self, job: JobId) -> JobEntry:
        """The job's entry, made where it is new."""
        return self.jobs.setdefault(job, JobEntry())

    def has_room(self) -> bool:
        """Whether another job out of the directory may be taken in; the oldest that is over makes room."""
        if len(self.jobs) >= MAX_JOBS:
            over = next((job for job, entry in self.jobs.items() if entry.over), None)
            if over is not None:
                del self.jobs[over]
        return len(self.jobs) < MAX_JOBS

    def add_piece(self, job: JobId, piece: Piece) -> list[Piece]:
        """Remember a saved piece; returns those it makes superfluous (older than the two newest rounds)."""
        entry = self.entry(job)
        if piece not in entry.pieces:
            entry.pieces.append(piece)
        rounds = sorted({p.batches_done for p in entry.pieces}, reverse=True)[:KEPT_ROUNDS]
        dropped = [p for p in entry.pieces if p.batches_done not in rounds]
        entry.pieces = [p for p in entry.pieces if p.batches_done in rounds]
        self.save()
        return dropped

    def restore(self, store: BlobStore) -> None:
        """After a restart: pin what the blob store still has, and forget pieces that it has lost."""
        for job, entry in self.jobs.items():
            entry.pieces = [piece for piece in entry.pieces if store.has(piece.blob)]
            for piece in entry.pieces:
                store.pin(piece_owner(piece), piece.blob)
            if not entry.over and store.has(BlobHash(job)):
                entry.spec = parse_manifest(store.path(BlobHash(job)).read_bytes())
                for blob in (BlobHash(job), *blobs_of(entry.spec)):
                    store.pin(job, blob)

    def save(self) -> None:
        """Write the file: temporary, synced, renamed."""
        state: dict[str, Any] = {
            "adopted": None
            if self.adopted is None
            else [*self.adopted.fence, self.adopted.leader, self.adopted.plan_hash],
            "jobs": {
                job: {
                    "sealed": base64.b64encode(entry.sealed).decode(),
                    "pieces": _PIECES.dump_python(entry.pieces, mode="json"),
                    "lineage": _LINEAGE.dump_python(entry.lineage, mode="json"),
                    "outcome": entry.outcome and entry.outcome.value,
                    "reason": entry.reason,
                }
                for job, entry in self.jobs.items()
            },
        }
        temporary = self._path.with_suffix(".tmp")
        with temporary.open("w") as file:
            json.dump(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)

    def _load(self) -> None:
        if not self._path.exists():
            return
        try:
            state = json.loads(self._path.read_text())
            if state["adopted"] is not None:
                epoch, term, leader, plan_hash = state["adopted"]
                self.adopted = Adopted(Fence(epoch, term), leader, plan_hash)
            for job, saved in state["jobs"].items():
                self.jobs[JobId(job)] = JobEntry(
                    sealed=base64.b64decode(saved["sealed"]),
                    pieces=_PIECES.validate_python(saved["pieces"]),
                    lineage=_LINEAGE.validate_python(saved["lineage"]),
                    outcome=saved["outcome"] and JobPhase(saved["outcome"]),
                    reason=saved["reason"],
                )
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            kept = self._path.with_suffix(".broken")
            self._path.replace(kept)
            log.warning(
                "the peer's state file is unreadable (%s): starting anew, the old one is %s", error, kept
            )
            self.jobs, self.adopted = {}, None
