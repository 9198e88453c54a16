"""Which peer keeps which blobs of a submitted job.

Problem: a job has to outlive the peer that took it in, but copies of all of it on a few peers would need each
of them to hold the whole model. Solution: every blob goes to a few peers by rendezvous hashing, so that many
peers hold a little each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from ravnest_p2p.core.types import BlobHash, PeerId


def shared_out(
    blobs: Sequence[BlobHash], peers: Sequence[PeerId], copies: int
) -> dict[PeerId, tuple[BlobHash, ...]]:
    """The blobs of each peer that gets any, in their order; each blob goes to `copies` peers, or to all.

    Source: D. Thaler and C. Ravishankar, "Using name-based mappings to increase hit rates", 1998.
    """
    found: dict[PeerId, list[BlobHash]] = {}
    for blob in blobs:
        ranked = sorted(peers, key=lambda peer: hashlib.sha256(f"{peer} {blob}".encode()).digest())
        for peer in ranked[:copies]:
            found.setdefault(peer, []).append(blob)
    return {peer: tuple(mine) for peer, mine in found.items()}
