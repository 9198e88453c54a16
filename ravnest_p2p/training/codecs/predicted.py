"""What both ends of an activation's stream know before a tensor comes, so that four bits say more of it.

Only what is not known yet is encoded (as in EF21, arXiv 2106.05203). Three things are known:

* Activations have a part that is the same in every sample, by position and channel, and often most of the
  largest values: the mean of what was decoded so far, over samples and micro-batches.
* After a ReLU or GELU the values of a block reach farther up than down, and a scale that fits both leaves
  half of its steps unused. So a block as a whole is taken off not by its mean but by the middle of its range.
* Channels go together. The first half of them is encoded, and what it says of the second, once decoded, is
  taken off the second before that is encoded (`regression`). Where little is left of the second half, the
  first, which now carries nearly all of the error, gets five bits and the second three.

Both ends learn from decoded values alone, and from the same ones. Sums that differ in their last bits from
one machine to another make what is known differ a little; such differences fade. A tensor that is too large
to compute with teaches nothing, so whatever comes, what is known stays finite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ravnest_p2p.core.compression import INT4_BLOCK
from ravnest_p2p.training.codecs.int4 import EVEN, FIRST, SECOND, UNEVEN, Int4, half_of, largest
from ravnest_p2p.training.codecs.regression import Regression, group_width

_WEIGHT = 0.1
"""Of the newest tensor in the mean, once there were ten of them."""

_MIDDLE_WEIGHT = 0.03
"""Of the newest sample in the middle of a block's range, once there were thirty."""

_KEPT = 1 - 2.0**-12
"""Of what is known, from one tensor to the next."""

_LEAST_ROWS = 256
"""Fewer vectors of channels say too little of how channels go together."""

_LEARNABLE = 2.0**30
"""Largest magnitude that is learned from: squares of it, added up, are finite."""

_UNEVEN_BELOW = 0.2
"""Share of the first half's square in what is left of the second. With a bit more, the first half's error has
0.23 of the variance, and with one less the second's 4.6 times as much: this is where the sum is smaller."""


class Predicted:
    """One end of one activation's stream.

    Args:
        shape: of the tensor; what `predictable` accepts.
    """

    def __init__(self, codec: Int4, shape: Sequence[int]) -> None:
        samples, width = shape[0], shape[-1]
        elements = math.prod(shape)
        rows = elements // (samples * width)
        channels = group_width(width // 2) if width % 2 == 0 and samples * rows >= _LEAST_ROWS else 0
        if not channels:
            rows, width = 1, elements // samples
        self._codec = codec
        self._elements = elements
        self._samples, self._rows, self._half = samples, rows, width // 2
        self._centres = torch.zeros(2, rows, width // 2)
        self._count = 0
        self._regression = Regression(width // 2, channels) if channels else None
        self._rooms: Tensor | None = None
        self._data: Tensor | None = None

    def encode(self, flat: Tensor) -> Tensor | None:
        """As `Codec.encode`; `sent` has to follow if it is sent."""
        codec, regression = self._codec, self._regression
        uneven = regression is not None and regression.left < _UNEVEN_BELOW
        data = codec.blank(self._elements, UNEVEN if uneven else EVEN)
        halves = first, second = self._halves()
        for half, channels, centre in zip(halves, self._channels(flat), self._centres, strict=True):
            torch.sub(channels, centre, out=self._by_sample(half))
            half[self._elements // 2 :].zero_()
        self._data = None
        if codec.write(data, FIRST, first, replace=True):
            if regression:
                regression.add(self._by_row(second), self._by_row(first), sign=-1)
            self._data = data if codec.write(data, SECOND, second, replace=True) else None
        return self._data

    def sent(self) -> None:
        """What `encode` gave last was sent: the other end knows as much."""
        assert self._data is not None, "what is sent was encoded"
        self._learn(self._data)
        self._data = None

    def decode(self, payload: Tensor, elements: int) -> Tensor:
        """As `Codec.decode`."""
        self._codec.check(payload, elements)
        first, second = self._halves()
        self._codec.read(payload, FIRST, first)
        self._codec.read(payload, SECOND, second)
        values = torch.empty(elements)
        first_of, second_of = self._channels(values)
        torch.add(self._by_sample(first), self._centres[0], out=first_of)
        torch.add(self._by_sample(second), self._centres[1], out=second_of)
        if self._regression:
            self._regression.add(second_of.view(-1, self._half), self._by_row(first), sign=1)
        self._learn(payload)
        return values

    def _learn(self, data: Tensor) -> None:
        """From what was decoded of both halves, which is apart from what was known."""
        sizes = largest(data)
        if max(sizes) > _LEARNABLE:
            return
        self._count += 1
        first, second = self._halves()
        for centre, half in zip(self._centres, (first, second), strict=True):
            centre.mul_(_KEPT).add_(self._step(self._by_sample(half)))
        if self._regression:
            self._regression.learn(self._by_row(first), self._by_row(second), sizes[0])

    def _step(self, apart: Tensor) -> Tensor:
        """How far the centres move: within a block with the mean, as a block with the middle of its range.

        Args:
            apart: of one half, shape (samples, rows, channels).
        """
        step = apart.mean(0).mul_(max(_WEIGHT, 1 / self._count))
        if step.numel() % INT4_BLOCK == 0:
            blocks = step.view(-1, INT4_BLOCK)
            low, high = (
                end(apart[self._count % self._samples].reshape(-1, INT4_BLOCK), 1)
                for end in (torch.amin, torch.amax)
            )
            middles = low.add_(high).mul_(max(_MIDDLE_WEIGHT, 1 / self._count) / 2)
            blocks.add_(middles.sub_(blocks.mean(1)).unsqueeze(1))
        return step

    def _halves(self) -> tuple[Tensor, Tensor]:
        """Room for what is encoded of both halves."""
        if self._rooms is None:
            self._rooms = torch.zeros(2, half_of(self._elements))
        return self._rooms[0], self._rooms[1]

    def _channels(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Both halves' channels of a whole tensor, shape (samples, rows, channels) each."""
        whole = flat.view(self._samples, self._rows, 2 * self._half)
        return whole[..., : self._half], whole[..., self._half :]

    def _by_sample(self, half: Tensor) -> Tensor:
        return self._by_row(half).view(self._samples, self._rows, self._half)

    def _by_row(self, half: Tensor) -> Tensor:
        return half[: self._elements // 2].view(-1, self._half)


def predictable(shape: Sequence[int]) -> bool:
    """Is this a shape that `Predicted` can take: of samples that can be halved?"""
    return len(shape) > 1 and math.prod(shape) > 0 and math.prod(shape[1:]) % 2 == 0
