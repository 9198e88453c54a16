"""Blobs on the requester's side: files named by the SHA-256 of what is in them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ravnest_p2p.core.types import BlobHash

_READ_BYTES = 1024 * 1024


def sha256_of(path: Path) -> BlobHash:
    """Hash of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_READ_BYTES):
            digest.update(part)
    return BlobHash(digest.hexdigest())
