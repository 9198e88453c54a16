"""Whole numbers of eight bits, and one scale for each block of 256 values.

A block's scale is its largest magnitude divided by 127, as a bfloat16. That is exact to 1 in 512, so the
largest magnitude is at most 127.25 scales: nothing is cut off, and no error is above half a scale. bfloat16
has float32's range: gradients of 1e-9 keep as many digits as those of 1. What was encoded once encodes
again to the same values, so what passes through several stages loses once.

Layout: scales of all blocks (bfloat16), then the numbers of all blocks. Zeros fill the last block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ravnest_p2p.core import compression
from ravnest_p2p.core.errors import NonFiniteError
from ravnest_p2p.training.codecs.base import TILE, check_size

_BLOCK = compression.INT8_BLOCK
_ROWS = TILE // _BLOCK
_TOP = 127
_LEAST_SCALE = 2.0**-120
"""Its reciprocal is finite; blocks of less than half of it come out as zeros."""

_MOST = 2.0**126
"""The largest magnitude: what is rounded up from it is finite."""


class Int8:
    """ "int8"."""

    name = compression.INT8

    def __init__(self) -> None:
        self._scratch = torch.empty(_ROWS, _BLOCK)

    def nbytes(self, elements: int) -> int:
        return compression.encoded_bytes(self.name, elements)

    def encode(self, flat: Tensor) -> Tensor | None:
        blocks = -(-flat.numel() // _BLOCK)
        if flat.numel() < blocks * _BLOCK:
            flat = torch.cat([flat, flat.new_zeros(blocks * _BLOCK - flat.numel())])
        tiles = flat.view(-1, _BLOCK)
        out = torch.empty(self.nbytes(flat.numel()), dtype=torch.uint8)
        scales, numbers = _parts(out, blocks)
        for first in range(0, blocks, _ROWS):
            rows = slice(first, first + _ROWS)
            room = self._scratch[: len(tiles[rows])]
            exact = torch.abs(tiles[rows], out=room).amax(1).mul_(1 / _TOP)
            if not float(exact.amax()) <= _MOST / _TOP:  # NaN too: amax lets it through
                return None
            scales[rows].copy_(exact.clamp_min_(_LEAST_SCALE))
            inverses = scales[rows].float().reciprocal_().unsqueeze(1)
            numbers[rows].copy_(torch.mul(tiles[rows], inverses, out=room).round_())
        return out

    def decode(self, payload: Tensor, elements: int) -> Tensor:
        check_size(self, payload, elements)
        blocks = -(-elements // _BLOCK)
        scales, numbers = _parts(payload, blocks)
        if blocks:
            low, high = (float(bound) for bound in torch.aminmax(scales.float()))
            if not _LEAST_SCALE <= low <= high <= 2 * _MOST / _TOP:
                raise NonFiniteError(f"scales from {low} to {high} came with {self.name} values")
        out = torch.empty(blocks, _BLOCK)
        for first in range(0, blocks, _ROWS):
            rows = slice(first, first + _ROWS)
            torch.mul(numbers[rows], scales[rows].float().unsqueeze(1), out=out[rows])
        return out.view(-1)[:elements]


def _parts(data: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    """Scales, shape (blocks,), bfloat16, and numbers, shape (blocks, 256), int8, of an encoded tensor."""
    split = blocks * compression.INT8_SCALE_BYTES
    return data[:split].view(torch.bfloat16), data[split:].view(torch.int8).view(blocks, _BLOCK)
