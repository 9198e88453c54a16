"""Values in four bits, eight bits of scale for 32 of them, and a rounding that is right on average.

Rounding to nearest makes the same error wherever the same value comes again, and training adds such errors
up. So noise that both ends know is added before rounding and subtracted after (subtractive dither;
Schuchman, 1964): the error is then at most half a step, as with rounding to nearest, and its mean is 0
whatever the values are. The noise is a table that every peer computes by whole numbers; each tensor starts
at another place of it, which its first bytes name.

The values are in two halves, and a byte holds one of each. A half may be decoded before the other is encoded,
and may be given five bits of the eight (`memory.Predicted` does both).

A block's scale is its half's largest times a power of 2^(-1/16): 255 of them span 16 octaves, so that a
block 2^-15 times as large as the largest still has all bits of its own. Smaller ones are zeros, as are blocks
of zeros. A block's largest magnitude is 7.33 steps (of 4 bits), but for the scale's rounding: below 7.5, so
that with the noise, which is between 7 and 8, what is rounded is between -0.5 and 15.5: nothing is cut off.

Layout: the halves' largest scales (2 float32), start in the table (int32), bits of the first half (int32), a
byte of scale for each block of the first half, then of the second, then 32 bytes for each pair of blocks: the
first half's in the lower bits. Zeros fill the last blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

from ravnest_p2p.core import compression
from ravnest_p2p.core.errors import NonFiniteError
from ravnest_p2p.training.codecs.base import TILE, check_size

FIRST, SECOND = HALVES = (0, 1)
EVEN, UNEVEN = SPLITS = (4, 5)
"""Bits of the first half; the second has the rest of eight."""

_BLOCK = compression.INT4_BLOCK
_HEAD = compression.INT4_HEAD_BYTES
_ROWS = TILE // _BLOCK
_OCTAVE = 16
_ZERO = 255
"""Scale byte of a block that is all zeros."""

_MOST = 2.0**100
"""Largest magnitude. Sums of such over any batch are finite."""

_LEAST = 2.0**-100
"""Halves without a larger magnitude come out as zeros: their steps' reciprocals would not be finite."""

_STARTS = 1 << 15
_STRIDE = 7919
_MASK = (1 << 32) - 1


class Int4:
    """ "int4".

    Args:
        seed: of the places in the table; only the sender's counts.
    """

    name = compression.INT4

    def __init__(self, seed: int = 0) -> None:
        self._chance = torch.Generator().manual_seed(seed)
        self._scratch = torch.empty(_ROWS, _BLOCK)
        self._numbers = torch.empty(_ROWS, _BLOCK, dtype=torch.int8)
        self._scales = torch.tensor([2.0 ** (-code / _OCTAVE) for code in range(_ZERO)] + [0.0])

    def nbytes(self, elements: int) -> int:
        return compression.encoded_bytes(self.name, elements)

    def encode(self, flat: Tensor) -> Tensor | None:
        data, half = self.blank(flat.numel()), half_of(flat.numel())
        fits = self.write(data, FIRST, flat[:half]) and self.write(data, SECOND, flat[half:])
        return data if fits else None

    def decode(self, payload: Tensor, elements: int) -> Tensor:
        self.check(payload, elements)
        room = torch.empty(2, half_of(elements))
        for half in HALVES:
            self.read(payload, half, room[half])
        return room.view(-1)[:elements]

    def blank(self, elements: int, bits: int = EVEN) -> Tensor:
        """An encoded tensor whose halves are still to be written: first FIRST, then SECOND.

        Args:
            bits: of each value of the first half, of `SPLITS`.
        """
        data = torch.zeros(self.nbytes(elements), dtype=torch.uint8)
        start = torch.randint(_STARTS, (1,), dtype=torch.int32, generator=self._chance)
        data[8:12].view(torch.int32).copy_(start)
        data[12:_HEAD].view(torch.int32).fill_(bits)
        return data

    def write(self, data: Tensor, half: int, flat: Tensor, *, replace: bool = False) -> bool:
        """Encode one half; False where a value cannot be held, as in `Codec.encode`.

        Args:
            data: as `blank` gave it.
            flat: shape (values,), float32, contiguous; at most as many as there is room for.
            replace: put in place of what was encoded what `read` will give; of all that there is room for.
        """
        codes, values = _parts(data, half)
        blocks, bits = len(codes), _bits(data, half)
        if flat.numel() < blocks * _BLOCK:
            flat = torch.cat([flat, flat.new_zeros(blocks * _BLOCK - flat.numel())])
        tiles = flat.view(-1, _BLOCK)
        largest = torch.empty(blocks)
        for first in range(0, blocks, _ROWS):
            rows = slice(first, first + _ROWS)
            torch.amax(torch.abs(tiles[rows], out=self._room(tiles[rows])), 1, out=largest[rows])
        most = float(largest.amax()) if blocks else 0.0
        if not most <= _MOST:  # NaN too: amax lets it through
            return False
        scale = torch.tensor(most / _top(bits) if most > _LEAST else 0.0)
        data[:8].view(torch.float32)[half] = scale
        if not float(scale):
            codes.fill_(_ZERO)
            if replace:
                flat.zero_()
            return True
        octaves = largest.div_(_top(bits) * scale).log2_()
        codes.copy_(octaves.mul_(-_OCTAVE).round_().clamp_(0, _ZERO).int())
        steps = self._scales.index_select(0, codes.int()).mul_(scale)
        inverses = torch.where(steps > 0, steps.reciprocal(), 0.0)
        for rows, noise in _tiles(data, half):
            room, inverse = self._room(noise), inverses[rows].unsqueeze(1)
            floats = torch.addcmul(noise, tiles[rows], inverse, out=room).round_()
            numbers = self._numbers[: len(floats)].copy_(floats).view(torch.uint8)  # uint8 itself is slow
            values[rows].add_(numbers, alpha=1 if half == FIRST else 1 << 8 - bits)
            if replace:
                torch.mul(floats.sub_(noise), steps[rows].unsqueeze(1), out=tiles[rows])
        return True

    def check(self, payload: Tensor, elements: int) -> None:
        """Raises what `Codec.decode` raises where a stranger's bytes are not so many encoded elements."""
        check_size(self, payload, elements)
        scales, start = payload[:8].view(torch.float32).tolist(), int(payload[8:12].view(torch.int32))
        split = int(payload[12:_HEAD].view(torch.int32))
        if not (all(0 <= scale <= _MOST for scale in scales) and 0 <= start < _STARTS and split in SPLITS):
            raise NonFiniteError(
                f"scales of {scales}, a start of {start} and {split} bits came with {self.name} values"
            )

    def read(self, payload: Tensor, half: int, room: Tensor) -> None:
        """Decode one half of bytes that were checked into room for `half_of` the elements."""
        codes, values = _parts(payload, half)
        bits = _bits(payload, half)
        steps = self._scales.index_select(0, codes.int()).mul_(payload[:8].view(torch.float32)[half])
        out = room.view(-1, _BLOCK)
        for rows, noise in _tiles(payload, half):
            numbers = self._numbers[: len(noise)].view(torch.uint8)
            if half == FIRST:
                torch.bitwise_and(values[rows], (1 << bits) - 1, out=numbers)
            else:
                torch.bitwise_right_shift(values[rows], 8 - bits, out=numbers)
            out[rows].copy_(numbers).sub_(noise).mul_(steps[rows].unsqueeze(1))

    def _room(self, rows: Tensor) -> Tensor:
        return self._scratch[: len(rows)]


def half_of(elements: int) -> int:
    """Values that a half has room for: whole blocks, so that two halves hold all elements."""
    return -(-elements // (2 * _BLOCK)) * _BLOCK


def largest(data: Tensor) -> tuple[float, float]:
    """The largest magnitudes of both halves, to a few percent."""
    first, second = data[:8].view(torch.float32).tolist()
    return first * _top(_bits(data, FIRST)), second * _top(_bits(data, SECOND))


def _bits(data: Tensor, half: int) -> int:
    first = int(data[12:_HEAD].view(torch.int32))
    return first if half == FIRST else 8 - first


def _top(bits: int) -> float:
    """Steps of a block's largest magnitude."""
    return (2.0 ** (bits - 1) - 0.5) * 0.9775


def _parts(data: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """Scale bytes of a half, shape (blocks,), and the values of both, shape (blocks, 32)."""
    blocks = (len(data) - _HEAD) // (2 + _BLOCK)
    codes = data[_HEAD : _HEAD + 2 * blocks].view(2, blocks)
    return codes[half], data[_HEAD + 2 * blocks :].view(blocks, _BLOCK)


def _tiles(data: Tensor, half: int) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of one tile of a half after another, and the noise for them, shape (blocks, 32)."""
    start, blocks = int(data[8:12].view(torch.int32)), len(_parts(data, half)[0])
    table = _noise(_bits(data, half))
    before = half * -(-blocks // _ROWS)
    for tile, first in enumerate(range(0, blocks, _ROWS), before):
        last = min(first + _ROWS, blocks)
        begin = (start + tile * _STRIDE) % _STARTS
        yield slice(first, last), table[begin : begin + (last - first) * _BLOCK].view(-1, _BLOCK)


@cache
def _noise(bits: int) -> Tensor:
    """As good as random, the same on every peer: float32 from 7 to 8 for 4 bits, by MurmurHash3's mixing."""
    x = torch.arange(TILE + _STARTS) * 0x9E3779B1 & _MASK
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ x >> shift) * factor & _MASK
    return ((x ^ x >> 16) >> 12).to(torch.float32).mul_(2.0**-20).add_(2.0 ** (bits - 1) - 1)
