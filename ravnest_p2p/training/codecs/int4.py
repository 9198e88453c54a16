"""Values in four bits, eight bits of scale for 32 of them, and a rounding that is right on average.

Rounding to nearest makes the same error wherever the same value comes again, and training adds such errors
up. So noise that both ends know is added before rounding and subtracted after (subtractive dither;
Schuchman, 1964): the error is then at most half a step, as with rounding to nearest, and its mean is 0
whatever the values are. The noise is a table that every peer computes by whole numbers; each tensor starts
at another place of it, which its first bytes name.

A block's scale is the tensor's largest times a power of 2^(-1/16): 255 of them span 16 octaves, so that a
block 2^-15 times as large as the largest still has 4 bits of its own. Smaller ones are zeros, as are blocks
of zeros. A block's largest magnitude is 7.33 steps, but for the scale's rounding: below 7.5, so that with
the noise, which is between 7 and 8, what is rounded is between -0.5 and 15.5, and nothing is cut off.

Layout: largest scale (float32), start in the table (int32), one byte of scale for each block, then 16 bytes
for each block: its first half in the lower four bits, its second half in the upper. Zeros fill the last
block.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

from ravnest_p2p.core import compression
from ravnest_p2p.core.errors import NonFiniteError
from ravnest_p2p.training.codecs.base import TILE, check_size

_BLOCK = compression.INT4_BLOCK
_HALF = _BLOCK // 2
_HEAD = compression.INT4_HEAD_BYTES
_TOP = 7.33
_OCTAVE = 16
_ZERO = 255
"""Scale byte of a block that is all zeros."""

_MOST = 2.0**100
"""Largest magnitude. Sums of such over any batch are finite."""

_LEAST = 2.0**-100
"""Tensors without a larger magnitude come out as zeros: their steps' reciprocals would not be finite."""

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
        self._noise = _noise()
        self._scratch = torch.empty(TILE // _BLOCK, _BLOCK)
        self._nibbles = torch.empty(TILE // _BLOCK, _HALF, dtype=torch.uint8)
        self._scales = torch.tensor([2.0 ** (-code / _OCTAVE) for code in range(_ZERO)] + [0.0])

    def nbytes(self, elements: int) -> int:
        return compression.encoded_bytes(self.name, elements)

    def encode(self, flat: Tensor) -> Tensor | None:
        blocks = -(-flat.numel() // _BLOCK)
        if flat.numel() < blocks * _BLOCK:
            flat = torch.cat([flat, flat.new_zeros(blocks * _BLOCK - flat.numel())])
        tiles = flat.view(-1, _BLOCK)
        largest = torch.empty(blocks)
        for first in range(0, blocks, TILE // _BLOCK):
            rows = slice(first, first + TILE // _BLOCK)
            torch.amax(torch.abs(tiles[rows], out=self._room(tiles[rows])), 1, out=largest[rows])
        most = float(largest.amax()) if blocks else 0.0
        if not most <= _MOST:  # NaN too: amax lets it through
            return None
        scale = torch.tensor(most / _TOP if most > _LEAST else 0.0)
        start = torch.randint(_STARTS, (1,), dtype=torch.int32, generator=self._chance)
        out = torch.empty(self.nbytes(flat.numel()), dtype=torch.uint8)
        out[:4].view(torch.float32).copy_(scale)
        out[4:_HEAD].view(torch.int32).copy_(start)
        codes, values = _parts(out, blocks)
        if not float(scale):
            codes.fill_(_ZERO)
            values.zero_()
            return out
        codes.copy_(largest.div_(_TOP * scale).log2_().mul_(-_OCTAVE).round_().clamp_(0, _ZERO))
        steps = self._scales[codes.int()].mul_(scale)
        inverses = torch.where(steps > 0, steps.reciprocal(), 0.0)
        for rows, noise in self._tiles(blocks, int(start)):
            numbers = torch.mul(tiles[rows], inverses[rows].unsqueeze(1), out=self._room(tiles[rows]))
            numbers.add_(noise).round_()
            values[rows].copy_(numbers[:, :_HALF].add_(numbers[:, _HALF:], alpha=16))
        return out

    def decode(self, payload: Tensor, elements: int, room: Tensor | None = None) -> Tensor:
        """As `Codec.decode`; where room is given (`room_for`), into it."""
        check_size(self, payload, elements)
        scale, start = float(payload[:4].view(torch.float32)), int(payload[4:_HEAD].view(torch.int32))
        if not (0 <= scale <= _MOST / _TOP and 0 <= start < _STARTS):
            raise NonFiniteError(f"a scale of {scale} and a start of {start} came with {self.name} values")
        blocks = -(-elements // _BLOCK)
        codes, values = _parts(payload, blocks)
        steps = self._scales[codes.int()].mul_(scale)
        room = room_for(elements) if room is None else room
        out = room[: blocks * _BLOCK].view(blocks, _BLOCK)
        for rows, noise in self._tiles(blocks, start):
            tile = out[rows]
            half = self._nibbles[: len(tile)]
            tile[:, :_HALF].copy_(torch.bitwise_and(values[rows], 15, out=half))
            tile[:, _HALF:].copy_(torch.bitwise_right_shift(values[rows], 4, out=half))
            tile.sub_(noise).mul_(steps[rows].unsqueeze(1))
        return room[:elements]

    def _room(self, rows: Tensor) -> Tensor:
        return self._scratch[: len(rows)]

    def _tiles(self, blocks: int, start: int) -> Iterator[tuple[slice, Tensor]]:
        """Blocks of one tile after another, and the noise for them, shape (blocks, 32)."""
        size = TILE // _BLOCK
        for first in range(0, blocks, size):
            last = min(first + size, blocks)
            begin = (start + first // size * _STRIDE) % _STARTS
            yield slice(first, last), self._noise[begin : begin + (last - first) * _BLOCK].view(-1, _BLOCK)


def room_for(elements: int) -> Tensor:
    """Memory to decode so many elements into."""
    return torch.empty(-(-elements // _BLOCK) * _BLOCK)


def _parts(data: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    """Scale bytes, shape (blocks,), and values, shape (blocks, 16), of an encoded tensor."""
    return data[_HEAD : _HEAD + blocks], data[_HEAD + blocks :].view(blocks, _HALF)


@cache
def _noise() -> Tensor:
    """As good as random, the same on every peer: from 7 to 8, float32, by MurmurHash3's last mixing."""
    x = torch.arange(TILE + _STARTS) * 0x9E3779B1 & _MASK
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ x >> shift) * factor & _MASK
    return ((x ^ x >> 16) >> 12).to(torch.float32).mul_(2.0**-20).add_(7.0)
