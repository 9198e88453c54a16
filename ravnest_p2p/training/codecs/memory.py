"""What the ends of a stream remember of the tensors before, so that four bits say more of the next.

`Feedback`: what a codec lost of one tensor is added to the next, so that their sum comes out right. It
holds only where the receiver does nothing with the tensors but add them up, as with the gradients that
micro-batches bring to a parameter. Activations, and gradients of activations, each belong to other samples:
there the loss of one would be noise in another.

`Predicted`: activations have a part that is the same in every sample, by position and channel, and often
most of the largest values. Both ends keep the mean of what was decoded so far, over samples and
micro-batches, and only the difference from it is encoded (as in EF21, arXiv 2106.05203). What is wrong in
the mean at one end fades, by a tenth with every tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ravnest_p2p.training.codecs.int4 import Int4, room_for

_WEIGHT = 0.1
"""Of the newest tensor in the mean, once there were ten of them."""


class Feedback:
    """The sending end of one parameter's gradients."""

    def __init__(self, codec: Int4) -> None:
        self._codec = codec
        self._owed: Tensor | None = None
        self._data: Tensor | None = None
        self._lost: Tensor | None = None

    def encode(self, flat: Tensor) -> Tensor | None:
        """As `Codec.encode`, for the tensor and what was lost before; `sent` has to follow if it is sent."""
        self._owed = flat if self._lost is None else flat + self._lost
        self._data = self._codec.encode(self._owed)
        return self._data

    def sent(self) -> None:
        """What `encode` gave last was sent: the next tensor makes up for what it lacked."""
        owed, data = self._owed, self._data
        assert owed is not None, "what is sent was encoded"
        assert data is not None, "what is sent was encoded"
        self._lost = owed - self._codec.decode(data, owed.numel())
        self._owed = self._data = None


class Predicted:
    """One end of one activation's stream.

    Args:
        samples: length of the tensor's first dimension, over which the mean is taken.
    """

    def __init__(self, codec: Int4, samples: int) -> None:
        self._codec = codec
        self._samples = max(samples, 1)
        self._mean: Tensor | None = None
        self._count = 0
        self._room: Tensor | None = None
        self._elements = 0
        self._data: Tensor | None = None

    def encode(self, flat: Tensor) -> Tensor | None:
        """As `Codec.encode`; `sent` has to follow if it is sent."""
        if self._room is None:
            self._room, self._elements = room_for(flat.numel()), flat.numel()
        if self._mean is not None:
            apart = self._room[: flat.numel()]
            torch.sub(self._rows(flat), self._mean, out=self._rows(apart))
            flat = apart
        self._data = self._codec.encode(flat)
        return self._data

    def sent(self) -> None:
        """What `encode` gave last was sent: the other end knows as much."""
        assert self._data is not None, "what is sent was encoded"
        self._learn(self._codec.decode(self._data, self._elements, self._room))
        self._data = None

    def decode(self, payload: Tensor, elements: int) -> Tensor:
        """As `Codec.decode`."""
        values = self._codec.decode(payload, elements)
        mean = self._mean
        self._learn(values)
        if mean is not None:
            self._rows(values).add_(mean)
        return values

    def _learn(self, apart: Tensor) -> None:
        """Move the mean by what was decoded, which is apart from it."""
        self._count += 1
        step = self._rows(apart).mean(0).mul_(max(_WEIGHT, 1 / self._count))
        self._mean = step if self._mean is None else step.add_(self._mean)

    def _rows(self, flat: Tensor) -> Tensor:
        return flat.view(self._samples, -1)
