"""The largest values of every 4,096, two bits each: 110 times fewer bytes than float32.

Of each row of 4,096 values the 128 largest are sent. Their places, in order, take 7 bits each instead of 12
(Elias, 1974; Fano, 1971): the 5 lower bits as they are, and the upper ones as a line of 256 bits in which the
n-th one stands at n plus its upper bits. Of a value its sign is sent and whether it is one of the row's large
or small ones; the row names the mean magnitude of both. The rest of a chunk is a shorter row. The size
follows from the number of values alone.

Layout of a row: two magnitudes (bfloat16), then bits, filled up to a byte: for each value its place's lower
bits, then the line, then signs, then which are large. All whole rows' magnitudes and bits, then the rest's.

Source: arXiv 2508.15706 (chunks of 4,096, values of two bits); places in 12 bits there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ravnest_p2p.core.errors import ChunkMismatchError, NonFiniteError
from ravnest_p2p.training.averaging import Chunk

SPARSE = "sparse"
ROW = 4096
LOWER_BITS = 5
"""One value of 2^5 is sent."""

_HEAD_BYTES = 4
_MOST = np.float32(2.0**100)
"""Largest magnitude: sums of such are finite."""

_BALANCINGS = 2
"""Steps towards the best two magnitudes (Lloyd's)."""

Numbers = np.ndarray[Any, Any]


class Sparse:
    """ "sparse".

    Args:
        lower_bits: b; one value of 2^b is sent. 1 to 8.
    """

    name = SPARSE

    def __init__(self, lower_bits: int = LOWER_BITS) -> None:
        self._lower = lower_bits

    def nbytes(self, length: int) -> int:
        return sum(rows * self._row_bytes(width) for rows, width in _shapes(length))

    def encode(self, vector: Chunk) -> np.ndarray[Any, np.dtype[np.uint8]]:
        parts, at = [], 0
        for rows, width in _shapes(len(vector)):
            parts.append(self._encode(vector[at : at + rows * width].reshape(rows, width)))
            at += rows * width
        return np.concatenate([np.empty(0, np.uint8), *parts])

    def decode(self, payload: np.ndarray[Any, np.dtype[np.uint8]], length: int) -> Chunk:
        if payload.nbytes != self.nbytes(length):
            raise ChunkMismatchError(f"{payload.nbytes} bytes came where {self.nbytes(length)} belong")
        out, at, place = np.zeros(length, np.float32), 0, 0
        for rows, width in _shapes(length):
            size = rows * self._row_bytes(width)
            values = out[at : at + rows * width].reshape(rows, width)
            self._decode(payload[place : place + size], values)
            at, place = at + rows * width, place + size
        return out

    def _count(self, width: int) -> int:
        """Values sent of a row; also how many numbers their places' upper bits can be."""
        return -(-width >> self._lower)

    def _bits(self, width: int) -> int:
        return (self._lower + 4) * self._count(width)

    def _row_bytes(self, width: int) -> int:
        return _HEAD_BYTES + -(-self._bits(width) // 8)

    def _encode(self, values: Chunk) -> Numbers:
        rows, width = values.shape
        count, lines = self._count(width), np.arange(rows)[:, None]
        magnitudes = np.abs(values)
        if not magnitudes.max() <= _MOST:
            raise NonFiniteError("a difference with a value that sparse cannot hold")
        places = np.flatnonzero(_largest(magnitudes, count)).reshape(rows, count) - lines * width
        chosen = magnitudes[lines, places]
        large, scales = _two_magnitudes(chosen)
        line = np.zeros((rows, 2 * count), np.uint8)
        line[lines, (places >> self._lower) + np.arange(count)] = 1
        lower = (places[:, :, None] >> np.arange(self._lower) & 1).astype(np.uint8).reshape(rows, -1)
        bits = np.concatenate([lower, line, values[lines, places] < 0, large], 1)
        packed = np.packbits(bits.astype(np.uint8), 1)
        return np.concatenate([scales.astype("<u2").view(np.uint8).ravel(), packed.ravel()])

    def _decode(self, payload: Numbers, out: Chunk) -> None:
        rows, width = out.shape
        count, lines, lower = self._count(width), np.arange(rows)[:, None], self._lower
        scales = _magnitudes(payload[: rows * _HEAD_BYTES].copy().view("<u2").reshape(rows, 2))
        packed = payload[rows * _HEAD_BYTES :].reshape(rows, -1)
        ends = np.cumsum([lower * count, 2 * count, count])
        lows, line, signs, large = np.split(np.unpackbits(packed, 1, count=self._bits(width)), ends, 1)
        if (line.sum(1, dtype=np.int64) != count).any():
            raise ChunkMismatchError("a row of sparse values with another number of places")
        upper = np.flatnonzero(line).reshape(rows, count) - lines * 2 * count - np.arange(count)
        low = lows.reshape(rows, count, lower).astype(np.int64) @ (1 << np.arange(lower))
        places = upper << lower | low
        if (np.diff(places, axis=1) <= 0).any() or (places[:, -1] >= width).any():
            raise ChunkMismatchError("sparse values whose places repeat, or lie beyond the row")
        found = np.where(large, scales[:, 1:], scales[:, :1])
        out[lines, places] = np.where(signs, -found, found)


def _shapes(length: int) -> Iterator[tuple[int, int]]:
    """Rows and their width: the whole ones, and the rest."""
    if length >= ROW:
        yield length // ROW, ROW
    if length % ROW:
        yield 1, length % ROW


def _largest(magnitudes: Chunk, count: int) -> Numbers:
    """Where the `count` largest of each row are; of equal ones the first."""
    ordered = magnitudes.view(np.uint32)  # of floats that are not negative, in the same order, and faster
    least = np.partition(ordered, -count, 1)[:, -count, None]
    chosen: Numbers = ordered >= least
    if np.count_nonzero(chosen) > len(chosen) * count:
        above, equal = ordered > least, ordered == least
        chosen = above | (equal & (np.cumsum(equal, 1) <= count - above.sum(1, keepdims=True)))
    return chosen


def _two_magnitudes(chosen: Chunk) -> tuple[Numbers, Numbers]:
    """Which of each row's magnitudes are large, and the means of the small and the large, bfloat16's bits.

    Args:
        chosen: shape (rows, count).
    Returns:
        Shapes (rows, count), bool, and (rows, 2), uint32.
    """
    border = chosen.mean(1, keepdims=True)
    for _ in range(_BALANCINGS):
        large = chosen > border
        number = large.sum(1, keepdims=True)
        total = np.where(large, chosen, 0).sum(1, keepdims=True)
        small = chosen.shape[1] - number
        below = (chosen.sum(1, keepdims=True) - total) / np.maximum(small, 1)
        means = np.concatenate([below, np.where(number, total / np.maximum(number, 1), below)], 1)
        border = means.mean(1, keepdims=True)
    bits = np.maximum(means, 0).astype(np.float32).view(np.uint32)
    return large, bits + 0x7FFF + (bits >> 16 & 1) >> 16


def _magnitudes(halves: Numbers) -> Chunk:
    """Of bfloat16's bits.

    Raises:
        NonFiniteError: one is negative, not finite, or larger than any encoder writes.
    """
    found: Chunk = (halves.astype(np.uint32) << 16).view(np.float32)
    if not (np.signbit(found).any() or not (found <= _MOST).all()):
        return found
    raise NonFiniteError("magnitudes of sparse values that no encoder writes")
