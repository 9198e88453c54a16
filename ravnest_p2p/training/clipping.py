"""How far a stage's gradient is clipped, and what the other stages need to know for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ravnest_p2p.core.optimizers import CLIP_MODEL
from ravnest_p2p.core.pipeline.global_norm import GlobalNorm
from ravnest_p2p.core.types import OptimizerSpec
from ravnest_p2p.training.finite import gradient_norm, with_others


class Clipping:
    """Of one stage; batches and micro-batches count from 0 within the generation.

    Args:
        microbatches_per_update: m.
    """

    def __init__(self, spec: OptimizerSpec, microbatches_per_update: int) -> None:
        self._largest = spec.clip_norm
        self._global = GlobalNorm(microbatches_per_update) if spec.clip_scope == CLIP_MODEL else None
        self._norms: dict[int, Tensor] = {}

    def forwarded(self, i: int, version: int, heard: float) -> float:
        """What goes on with the activation of micro-batch `i`: see `GlobalNorm`."""
        return self._global.forwarded(i, version, heard) if self._global else 0.0

    def taken_back(self, i: int, heard: float, gradients: Mapping[str, Tensor]) -> float:
        """What goes back with the gradient of micro-batch `i`.

        Args:
            gradients: of the parameters by name, summed over the batch so far.
        """
        if self._global is None:
            return 0.0
        u = self._global.batch_ended_by(i)
        if u is not None:
            self._global.complete(u, float(self.norm(u, gradients)))
        return self._global.taken_back(i, heard)

    def norm(self, u: int, gradients: Mapping[str, Tensor]) -> Tensor:
        """Of the stage's own gradient of batch `u`, which is complete; before it is clipped."""
        if u not in self._norms:
            self._norms = {u: gradient_norm(gradients.values())}
        return self._norms[u]

    def others(self, u: int) -> float:
        """Norm of the other stages' gradients by which batch `u` is stepped; 0 where they do not count."""
        return self._global.others(u) if self._global else 0.0

    def clip(self, u: int, params: Iterable[Tensor]) -> None:
        """Scale the parameters' `.grad` for step `u`, in place; `norm` was asked for."""
        if self._largest is not None:
            norm = with_others(self._norms[u], self.others(u))
            torch.nn.utils.clip_grads_with_norm_(list(params), self._largest, norm)
