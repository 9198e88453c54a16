"""Codecs of float32 chunks: the boundary's for 16, 8 and 4 bits, the bare values, and the sparse one.

Sizes follow from the number of values, so a receiver knows them before it looks. A payload is an array of
bytes, so that it can be sent without a copy (`training.averaging.view`).
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from ravnest_p2p.core import compression
from ravnest_p2p.core.errors import ChunkMismatchError, NonFiniteError
from ravnest_p2p.training.averaging import ELEMENT_BYTES, Chunk
from ravnest_p2p.training.codecs import Codec, codec_of
from ravnest_p2p.training.difference.sparse import SPARSE, Sparse

Payload = np.ndarray[Any, np.dtype[np.uint8]]

CODECS = (compression.NONE, compression.FP16, compression.INT8, compression.INT4, SPARSE)
"""Finest first."""


class DifferenceCodec(Protocol):
    """One way of writing a chunk down. Whatever a payload holds, what comes out is finite."""

    @property
    def name(self) -> str: ...

    def nbytes(self, length: int) -> int:
        """Exact size of so many values."""
        ...

    def encode(self, vector: Chunk) -> Payload:
        """The bytes of a chunk.

        Args:
            vector: shape (length,), float32, contiguous; stays as it is.
        Returns:
            New array, shape (nbytes(length),), uint8.
        Raises:
            NonFiniteError: NaN, infinity, or a value beyond the codec's range.
        """
        ...

    def decode(self, payload: Payload, length: int) -> Chunk:
        """The values that a stranger's bytes stand for, new array of shape (length,).

        Raises:
            ChunkMismatchError: another size than of so many values, or places that no encoder names.
            NonFiniteError: a scale or value that no encoder writes.
        """
        ...


class Plain:
    """ "none": little-endian float32."""

    name = compression.NONE

    def nbytes(self, length: int) -> int:
        return ELEMENT_BYTES * length

    def encode(self, vector: Chunk) -> Payload:
        return _finite(vector, self.name).astype("<f4").view(np.uint8)

    def decode(self, payload: Payload, length: int) -> Chunk:
        if payload.nbytes != self.nbytes(length):
            raise ChunkMismatchError(f"{payload.nbytes} bytes came where {self.nbytes(length)} belong")
        return _finite(payload.view("<f4").astype(np.float32), self.name)


class Dense:
    """A boundary's codec (`training.codecs`) on NumPy's arrays."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec

    @property
    def name(self) -> str:
        return self._codec.name

    def nbytes(self, length: int) -> int:
        return self._codec.nbytes(length)

    def encode(self, vector: Chunk) -> Payload:
        payload = self._codec.encode(torch.from_numpy(vector))
        if payload is None:
            raise NonFiniteError(f"a difference with a value that {self.name} cannot hold")
        found: Payload = payload.numpy()
        return found

    def decode(self, payload: Payload, length: int) -> Chunk:
        data = torch.empty(payload.nbytes, dtype=torch.uint8)  # torch warns of memory that it may not write
        data.numpy()[:] = payload
        found: Chunk = self._codec.decode(data, length).numpy()
        return _finite(found, self.name)


def difference_codec(name: str, seed: int = 0) -> DifferenceCodec:
    """The codec of that name in `CODECS`.

    Args:
        seed: of the chance in "int4"; only the sender's counts.
    Raises:
        KeyError: there is none.
    """
    if name == compression.NONE:
        return Plain()
    return Sparse() if name == SPARSE else Dense(codec_of(name, seed))


def _finite(values: Chunk, name: str) -> Chunk:
    if not np.isfinite(values).all():
        raise NonFiniteError(f"{name} values that are not finite")
    return values
