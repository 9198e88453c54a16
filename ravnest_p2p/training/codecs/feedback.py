"""Error feedback: what a codec lost of one tensor is added to the next, so that their sum comes out right.

It holds only where the receiver does nothing with the tensors but add them up, as with the gradients that
micro-batches bring to a parameter. Activations, and gradients of activations, each belong to other samples:
there the loss of one would be noise in another.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ravnest_p2p.training.codecs.base import Codec


class Feedback:
    """The stream of one parameter's gradients."""

    def __init__(self) -> None:
        self._lost: Tensor | None = None
        self._next: Tensor | None = None

    def encode(self, codec: Codec, flat: Tensor) -> Tensor | None:
        """As `Codec.encode`, for the tensor and what was lost before; `sent` has to follow if it is sent."""
        owed = flat if self._lost is None else flat + self._lost
        data = codec.encode(owed)
        if data is not None:
            self._next = torch.sub(owed, codec.decode(data, flat.numel()))
        return data

    def sent(self) -> None:
        """What `encode` gave last was sent: the next tensor makes up for what it lacked."""
        self._lost = self._next
