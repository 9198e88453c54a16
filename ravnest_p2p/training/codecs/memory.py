"""What the sender of a parameter's gradients remembers, so that four bits say more of the next.

`Feedback`: what a codec lost of one tensor is added to the next, so that their sum comes out right. It
holds only where the receiver does nothing with the tensors but add them up, as with the gradients that
micro-batches bring to a parameter. Activations, and gradients of activations, each belong to other samples:
there the loss of one would be noise in another. What helps activations is in `predicted`.
"""

from __future__ import annotations

from torch import Tensor

from ravnest_p2p.training.codecs.int4 import Int4


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
