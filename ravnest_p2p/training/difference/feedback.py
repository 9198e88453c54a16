"""What a codec lost of one round's chunks, added to the next round's.

What is kept of a chunk is what the common mean still lacks, already times the share that it counted for. So
it stays right where shares change, and where the chunk gets another owner: whoever keeps it adds it to what
it sends of the chunk next. A round that fails has changed nothing: only `commit` puts the new in the place of
the old.

A codec that sends little owes much, and a cluster that went on from the common mean alone would lack most of
what it just learned. So it may go on from what it expects that the mean will be once all have sent what they
owe (`ahead`). Where a value comes at last, that expectation ends, and the mean has it from few members only:
the cluster would be set back. So the mean is taken times more than 1, the more members there are
(`sparse_outer`).

Source: arXiv 1809.07599 (error feedback); that it fades: arXiv 2508.15706. `AGREE`, `KEPT` and `RATE_POWER`
were found by trial (docs/averaging.md).
"""

from __future__ import annotations

import numpy as np

from ravnest_p2p.core.averaging import SGD
from ravnest_p2p.core.rings import chunk_bounds
from ravnest_p2p.training.averaging import Chunk, chunk_count
from ravnest_p2p.training.difference.codecs import DifferenceCodec, Payload, Plain
from ravnest_p2p.training.outer import OuterSpec

KEPT = 0.95
"""Decay that is meant for the sparse codec."""

RATE_POWER = 0.4
"""Of the number of members."""

AGREE = 0.35
"""Of what a member owes, what it expects each other one to owe in the same direction. At 1 clusters go too
far apart, at 0 they learn again what they have already learned."""


EXACT = Plain()


def sparse_outer(members: int) -> OuterSpec:
    """Outer optimizer that is meant for sparse differences of so many members, where they go on ahead."""
    return OuterSpec(SGD, members**RATE_POWER)


class ErrorFeedback:
    """One member's, of one segment.

    Args:
        elements: of the segment.
        chunks: nearly equal parts that it is cut into.
        decay: share of what was lost that is kept; below 1 it fades.
        exact: elements at the end that no codec may touch, in chunks of their own.
    Attributes:
        bounds: of all chunks.
        rough: elements before the exact ones.
    """

    def __init__(
        self, elements: int, chunks: int, codec: DifferenceCodec, decay: float = 1.0, exact: int = 0
    ) -> None:
        self.codec = codec
        self.rough = elements - exact
        self.bounds = list(chunk_bounds(self.rough, chunks))
        if exact:
            exactly = chunk_bounds(exact, chunk_count(exact, 1))
            self.bounds += [(self.rough + start, self.rough + stop) for start, stop in exactly]
        self.chunks = len(self.bounds)
        self._decay = np.float32(decay)
        whole = np.zeros(elements, np.float32)
        self._owed = [whole[start:stop] for start, stop in self.bounds]
        self._counts = [1.0] * self.chunks
        self._pending: dict[int, tuple[Chunk, float]] = {}

    def codec_of(self, chunk: int) -> DifferenceCodec:
        """What writes the chunk down."""
        return self.codec if self.bounds[chunk][1] <= self.rough else EXACT

    def length(self, chunk: int) -> int:
        """Elements of a chunk."""
        return len(self._owed[chunk])

    def encode(self, chunk: int, values: Chunk, share: float = 1.0) -> Payload:
        """The values, and what earlier rounds owe of the chunk; errors as of the codec.

        Args:
            values: shape (length(chunk),), float32; added to in place.
            share: that they were multiplied by.
        """
        values += self._owed[chunk]
        codec = self.codec_of(chunk)
        payload = codec.encode(values)
        values -= codec.decode(payload, len(values))
        values *= self._decay
        self._pending[chunk] = values, share
        return payload

    def commit(self) -> None:
        """The round is over, and everybody has what was sent."""
        for chunk, (lost, share) in self._pending.items():
            self._owed[chunk][:] = lost
            self._counts[chunk] = 1 / share if share else 1.0
        self._pending.clear()

    def ahead(self, chunk: int) -> Chunk:
        """What this member expects of a chunk beyond the common mean: what it owes, and others with it.

        Returns:
            New array, shape (length(chunk),), float32.
        """
        return self._owed[chunk] * np.float32(1 + AGREE * (self._counts[chunk] - 1))

    def forget(self) -> None:
        """The round failed: what was sent counts for nothing."""
        self._pending.clear()
