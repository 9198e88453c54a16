"""Gradients of a batch, added up as its micro-batches come back.

Problem: two batches are under way at once where micro-batches cross an update, and each gradient belongs to
the batch of its micro-batch. Solution: one sum for each batch and parameter. The first gradient of a batch
becomes the sum where nobody else can have its memory, so that nothing is copied for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import chain

import torch
from torch import Tensor


class GradientSums:
    """Σ ∇Lᵢ/m of each batch under way.

    Args:
        trained: the parameters, by name; sums have their layout.
    """

    def __init__(self, trained: Mapping[str, Tensor]) -> None:
        self._trained = trained
        self._of_batch: dict[int, dict[str, Tensor]] = {}

    def add(self, batch: int, gradients: Mapping[str, Tensor | None], others: Iterable[Tensor] = ()) -> None:
        """One micro-batch's gradients.

        Args:
            gradients: as autograd gave them, by name; not to be used any more.
            others: tensors that autograd gave or was given beside them, which may be the same memory.
        """
        sums = self._of_batch.setdefault(batch, {})
        found = {name: gradient for name, gradient in gradients.items() if gradient is not None}
        holders = Counter(_memory(tensor) for tensor in chain(found.values(), others))
        for name, gradient in found.items():
            if name in sums:
                sums[name].add_(gradient)
            elif holders[_memory(gradient)] == 1 and _is_whole(gradient, self._trained[name]):
                sums[name] = gradient
            else:
                sums[name] = torch.empty_like(self._trained[name]).copy_(gradient)

    def of(self, batch: int) -> dict[str, Tensor]:
        """What came so far, in the parameters' order; those without a gradient are absent."""
        sums = self._of_batch.get(batch, {})
        return {name: sums[name] for name in self._trained if name in sums}

    def pop(self, batch: int) -> dict[str, Tensor]:
        """The same, and forget it."""
        found = self.of(batch)
        self._of_batch.pop(batch, None)
        return found


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _is_whole(gradient: Tensor, weight: Tensor) -> bool:
    """Whether it is all of its memory, laid out as the weight is."""
    alone = gradient._base is None and gradient.untyped_storage().nbytes() == gradient.nbytes
    return alone and gradient.stride() == weight.stride() and gradient.dtype == weight.dtype
