"""Two bytes for each value.

Gradients of a mean loss are often smaller than 6e-5, below which float16 loses digits, so `Float16` scales
a tensor by a power of two, which rounds nothing, until its largest value lies just below float16's largest.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ravnest_p2p.core import compression
from ravnest_p2p.core.errors import NonFiniteError
from ravnest_p2p.training.codecs.base import TILE, check_size

_TOP = 15
"""Scaled values are below 2^15, so that none rounds up to float16's infinity."""

_LEAST, _MOST = 2.0**-120, 2.0**120
_LARGEST = 2.0**127
"""What is rounded up from it is finite."""


class Float16:
    """One power of two, float32, and then float16 values."""

    name = compression.FP16

    def __init__(self) -> None:
        self._scratch = torch.empty(TILE)

    def nbytes(self, elements: int) -> int:
        return compression.encoded_bytes(self.name, elements)

    def encode(self, flat: Tensor) -> Tensor | None:
        largest = _largest(flat)
        if not largest <= _LARGEST:
            return None
        exponent = math.frexp(largest)[1] - _TOP if largest else 0
        unit = min(max(2.0**exponent, _LEAST), _MOST)
        out = torch.empty(self.nbytes(flat.numel()), dtype=torch.uint8)
        out[: compression.HALF_SCALE_BYTES].view(torch.float32).fill_(unit)
        halves = out[compression.HALF_SCALE_BYTES :].view(torch.float16)
        for start in range(0, flat.numel(), TILE):
            tile = flat[start : start + TILE]
            halves[start : start + TILE].copy_(torch.mul(tile, 1 / unit, out=self._scratch[: len(tile)]))
        return out

    def decode(self, payload: Tensor, elements: int) -> Tensor:
        check_size(self, payload, elements)
        unit = float(payload[: compression.HALF_SCALE_BYTES].view(torch.float32))
        if not (_LEAST <= unit <= _MOST and math.frexp(unit)[0] == 0.5):
            raise NonFiniteError(f"a scale of {unit} came with float16 values, where a power of two belongs")
        halves = payload[compression.HALF_SCALE_BYTES :].view(torch.float16)
        return halves.to(torch.float32).mul_(unit)


class BFloat16:
    """The upper half of each float32, rounded to nearest."""

    name = compression.BF16

    def nbytes(self, elements: int) -> int:
        return compression.encoded_bytes(self.name, elements)

    def encode(self, flat: Tensor) -> Tensor | None:
        if not _largest(flat) <= _LARGEST:
            return None
        return flat.to(torch.bfloat16).view(torch.uint8)

    def decode(self, payload: Tensor, elements: int) -> Tensor:
        check_size(self, payload, elements)
        return payload.view(torch.bfloat16).to(torch.float32)


def _largest(flat: Tensor) -> float:
    """Largest magnitude; NaN where one is among the values."""
    if not flat.numel():
        return 0.0
    low, high = torch.aminmax(flat)
    return max(abs(float(low)), abs(float(high))) if float(low) == float(low) else math.nan
