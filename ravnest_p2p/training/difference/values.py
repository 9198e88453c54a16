"""The arithmetic of a round of differences: `core.rings.round` on encoded chunks.

Every member holds the last common mean, the same bits. It sends what it has learned since, times its share;
the owner of a chunk decodes all, adds them up in the order of the ranks, then its own, encodes the sum once
more and sends that to all; everybody, the owner too, takes what those bytes decode to. So all end with the
same bits, and each member sends 2(C-1)/C of the encoded segment.

Any ways do (`core.rings.ways`); but what is encoded again on each hop loses on each, so `Star` is meant.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ravnest_p2p.core.errors import ChunkMismatchError, NonFiniteError
from ravnest_p2p.training import averaging
from ravnest_p2p.training.averaging import Chunk
from ravnest_p2p.training.bounds import MeanBound
from ravnest_p2p.training.difference.codecs import Payload
from ravnest_p2p.training.difference.feedback import ErrorFeedback
from ravnest_p2p.training.digests import ChunkDigests
from ravnest_p2p.training.outer import Outer
from ravnest_p2p.training.robust import RobustMean


class DifferenceValues:
    """One member's values of a segment in one round; what is underway is a payload of the feedback's codec.

    Args:
        flat: own parameters as `averaging.gather` lays them out: shape (elements,), float32. It becomes
            the difference, then chunk by chunk the mean difference, and with `settle` what to go on from.
        common: the last common mean, of the same shape; unchanged before `settle`. It is what is saved.
        feedback: of this member and segment; its chunks are those of the round.
        bound: how far means may be from the own parts; anywhere, where it is None.
        robust: how contributions become one; their sum by shares, where it is None.
        ahead: `settle` gave, and gives, what this member knows beyond the common mean too (`ErrorFeedback`);
            else all members went on, and go on, from the same bits.
    Attributes:
        digests: of each chunk's common mean before, and what is taken of its mean difference.
    """

    def __init__(
        self,
        flat: Tensor,
        common: Tensor,
        feedback: ErrorFeedback,
        bound: MeanBound | None = None,
        robust: RobustMean | None = None,
        *,
        ahead: bool = False,
    ) -> None:
        self.chunks = feedback.chunks
        self._bound, self._robust = bound, robust
        self.digests = ChunkDigests(self.chunks)
        self._feedback, self._ahead = feedback, ahead
        self._common, self._flat = common.numpy(), flat.sub_(common).numpy()
        self._own = [self._flat[start:stop] for start, stop in feedback.bounds]
        self._before = [self._common[start:stop] for start, stop in feedback.bounds]
        if ahead:
            for chunk, own in enumerate(self._own):
                own -= feedback.ahead(chunk)

    def received(self, chunk: int, payload: averaging.Payload) -> Payload:
        """A chunk as it came.

        Raises:
            ChunkMismatchError: no such chunk, or another size than it has.
        """
        if not 0 <= chunk < self.chunks:
            raise ChunkMismatchError(f"chunk {chunk} of {self.chunks}")
        codec, size = self._feedback.codec_of(chunk), memoryview(payload).nbytes
        if size != (wanted := codec.nbytes(len(self._own[chunk]))):
            raise ChunkMismatchError(f"a chunk of {size} bytes, not {wanted} of {codec.name}")
        return np.frombuffer(payload, np.uint8)

    def part(self, chunk: int, share: float) -> Payload:
        """The own difference times its share, and what is owed of it; where means are robust, as it is."""
        counted = share if self._robust is None else float(share > 0)
        return self._feedback.encode(chunk, self._part(chunk, counted), counted)

    def add(self, chunk: int, share: float, sums: Sequence[Payload]) -> Payload:
        """The sums, in this order, and then the own difference times its share, or the robust mean of all;
        encoded with what is owed.

        Raises:
            NonFiniteError, ChunkMismatchError: one is none, or the sum is beyond the codec's range.
        """
        if self._robust is not None:
            parts = [self._decoded(chunk, one) for one in sums]
            return self._feedback.encode(chunk, self._robust.of((*parts, self._own[chunk])))
        total = np.zeros_like(self._own[chunk])
        with np.errstate(over="ignore", invalid="ignore"):
            for one in sums:
                total += self._decoded(chunk, one)
            total += self._part(chunk, share)
        return self._feedback.encode(chunk, total)

    def hold(self, chunk: int, mean: Payload) -> Payload:
        """Put what the mean decodes to in the own difference's place; returns it as it is handed on.

        Raises:
            NonFiniteError, ChunkMismatchError: it is none, or would make a parameter so; nothing changed.
            OutOfBoundsError: it is too far from the own difference; nothing changed.
        """
        values = self._decoded(chunk, mean)
        with np.errstate(over="ignore"):
            after = self._before[chunk] + values
        if not np.isfinite(after).all():
            raise NonFiniteError("a mean difference with which a parameter is not finite")
        if self._bound is not None:
            self._bound.check(chunk, self._before[chunk] + self._own[chunk], after)
        self._own[chunk][:] = values
        self.digests.note(chunk, after)
        return mean

    def settle(self, outer: Outer) -> None:
        """The round ended with the mean: take it into `common`, keep what the bytes lacked, and go on.

        Exact elements take the mean as it is, whatever the outer optimizer: they are no parameters.
        """
        rough = self._feedback.rough
        outer.step(self._common[:rough], self._flat[:rough])
        self._common[rough:] += self._flat[rough:]
        self._feedback.commit()
        self._flat[:] = self._common
        if self._ahead:
            for chunk, own in enumerate(self._own):
                own += self._feedback.ahead(chunk)

    def _part(self, chunk: int, share: float) -> Chunk:
        own = self._own[chunk]
        return own * np.float32(share) if share else np.zeros_like(own)

    def _decoded(self, chunk: int, payload: Payload) -> Chunk:
        return self._feedback.codec_of(chunk).decode(payload, len(self._own[chunk]))
