"""Digests of what a member ends a round with, made chunk by chunk while each is in the processor's cache.

BLAKE3, which nobody can find other values to, at 10 GB/s on a core with AVX-512 (SHA-256: 2, BLAKE2b: 1.4); a
second pass over the segment at the end of a round would take longer than that for the memory alone.
"""

from __future__ import annotations

import numpy as np
from blake3 import blake3

from ravnest_p2p.core.rings import DIGEST_BYTES, Digests


class ChunkDigests:
    """Of one segment in one round."""

    def __init__(self, chunks: int) -> None:
        self._chunks = [b""] * chunks

    def note(self, chunk: int, values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
        """A chunk is what it stays."""
        self._chunks[chunk] = blake3(values.view(np.uint8).data).digest()

    def rows(self, rows: int) -> Digests:
        """Of all that was noted, in so many rows (`core.rings.agreement`)."""
        return tuple(
            blake3(b"".join(self._chunks[row::rows])).digest(length=DIGEST_BYTES) for row in range(rows)
        )
