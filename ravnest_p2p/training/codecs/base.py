"""What every codec does, and the checks that all of them make on a stranger's bytes."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ravnest_p2p.core.errors import ChunkMismatchError

TILE = 1 << 16
"""Elements worked on at once: what is computed on the way stays in the processor's cache, and memory for it
does not grow with the tensor."""


class Codec(Protocol):
    """One way of writing float32 values down; holds nothing of one tensor when it takes the next.

    Attributes:
        name: as in `core.compression`.
    """

    name: str

    def nbytes(self, elements: int) -> int:
        """Exact size of so many elements."""

    def encode(self, flat: Tensor) -> Tensor | None:
        """The bytes of a tensor.

        Args:
            flat: shape (elements,), float32, CPU, contiguous; stays as it is.
        Returns:
            New tensor, shape (nbytes(elements),), uint8. None where the codec cannot hold a value: NaN,
            infinity, or beyond its range. Such a tensor has to be sent as it is.
        """

    def decode(self, payload: Tensor, elements: int) -> Tensor:
        """The values that a stranger's bytes stand for.

        Args:
            payload: shape (bytes,), uint8.
        Returns:
            New tensor, shape (elements,), float32.
        Raises:
            ChunkMismatchError: another number of bytes than belong to so many elements (remote's fault).
            NonFiniteError: a scale that no encoder writes (remote's fault).
        """


def check_size(codec: Codec, payload: Tensor, elements: int) -> None:
    """Raises ChunkMismatchError where a payload has another size than its elements take."""
    if payload.dtype != torch.uint8 or payload.numel() != codec.nbytes(elements):
        raise ChunkMismatchError(
            f"{payload.numel()} bytes of {codec.name} came where {codec.nbytes(elements)} belong"
        )
