"""Whole numbers of 8 or 4 bits and one scale for each block of values.

A block's scale is its largest magnitude divided by the largest whole number, as a bfloat16. That is exact to
1 in 512, so the largest magnitude is at most 127.25, or 7.02, scales, and no error is above half a scale.
bfloat16 has float32's range: gradients of 1e-9 keep as many digits as those of 1. What was encoded once, to
nearest, encodes again to the same values, so what passes through several stages loses once.

Rounding is to nearest, or by chance (up as often as the remainder says), which has twice the error but no
bias: what a stage sums up over many gradients comes out right.

Layout: scales of all blocks (bfloat16), then the values of all blocks; of 4-bit blocks the first half in the
lower four bits and the second half in the upper. The last block is filled with zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ravnest_p2p.core import compression
from ravnest_p2p.core.errors import NonFiniteError
from ravnest_p2p.training.codecs.base import TILE, check_size

_LEAST_SCALE = 2.0**-120
"""Its reciprocal is finite; blocks of less than half of it come out as zeros."""

_MOST = 2.0**126
"""The largest magnitude: what is rounded up from it is finite."""

_CHANCES = TILE + 4096
_SHAPES = {compression.INT8: (127, compression.INT8_BLOCK), compression.INT4: (7, compression.INT4_BLOCK)}


class Blockwise:
    """ "int8" or "int4".

    Args:
        seed: rounds by chance, from this seed on; None rounds to nearest.
    """

    def __init__(self, name: str, seed: int | None = None) -> None:
        self.name = name
        self._top, self._block = _SHAPES[name]
        self._chances: Tensor | None = None
        if seed is not None:
            self._generator = torch.Generator().manual_seed(seed)
            self._chances = torch.rand(_CHANCES, generator=self._generator)

    def nbytes(self, elements: int) -> int:
        return compression.encoded_bytes(self.name, elements)

    def encode(self, flat: Tensor) -> Tensor | None:
        elements, block = flat.numel(), self._block
        blocks = -(-elements // block)
        out = torch.empty(self.nbytes(elements), dtype=torch.uint8)
        scales, values = self._parts(out, blocks)
        per_tile = TILE // block
        for first in range(0, blocks, per_tile):
            last = min(first + per_tile, blocks)
            tile = flat[first * block : last * block]
            if tile.numel() < (last - first) * block:
                tile = torch.cat([tile, tile.new_zeros((last - first) * block - tile.numel())])
            if not self._encode_tile(tile.view(-1, block), scales[first:last], values[first:last]):
                return None
        return out

    def decode(self, payload: Tensor, elements: int) -> Tensor:
        check_size(self, payload, elements)
        block = self._block
        blocks = -(-elements // block)
        scales, values = self._parts(payload, blocks)
        if blocks:
            low, high = (float(bound) for bound in torch.aminmax(scales.float()))
            if not _LEAST_SCALE <= low <= high <= 2 * _MOST / self._top:
                raise NonFiniteError(f"scales from {low} to {high} came with {self.name} values")
        out = torch.empty(blocks, block)
        per_tile = TILE // block
        for first in range(0, blocks, per_tile):
            tile = out[first : first + per_tile]
            self._widen(values[first : first + per_tile], tile)
            tile.mul_(scales[first : first + per_tile].float().unsqueeze(1))
        return out.view(-1)[:elements]

    def _parts(self, data: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
        """Scales, shape (blocks,), bfloat16; values, shape (blocks, bytes of one), uint8."""
        split = blocks * compression.SCALE_BYTES
        return data[:split].view(torch.bfloat16), data[split:].view(blocks, -1) if blocks else data[split:]

    def _encode_tile(self, tile: Tensor, scales: Tensor, values: Tensor) -> bool:
        exact = tile.abs().amax(1).mul_(1 / self._top)
        # False for NaN as well, whatever block it is in: amax lets it through.
        if not float(exact.amax()) <= _MOST / self._top:
            return False
        scales.copy_(exact.clamp_min_(_LEAST_SCALE))
        numbers = tile * scales.float().reciprocal_().unsqueeze(1)
        if self._chances is None:
            numbers.round_()
        else:
            start = int(torch.randint(_CHANCES - TILE, (), generator=self._generator))
            numbers.add_(self._chances[start : start + numbers.numel()].view_as(numbers)).floor_()
        self._narrow(numbers.clamp_(-self._top, self._top), values)
        return True

    def _narrow(self, numbers: Tensor, values: Tensor) -> None:
        if self.name == compression.INT8:
            values.view(torch.int8).copy_(numbers)
            return
        half = self._block // 2
        numbers.add_(self._top)
        values.copy_(torch.add(numbers[:, :half], numbers[:, half:], alpha=16))

    def _widen(self, values: Tensor, numbers: Tensor) -> None:
        if self.name == compression.INT8:
            numbers.copy_(values.view(torch.int8))
            return
        half = self._block // 2
        numbers[:, :half].copy_(values & 15)
        numbers[:, half:].copy_(values >> 4)
        numbers.sub_(self._top)
