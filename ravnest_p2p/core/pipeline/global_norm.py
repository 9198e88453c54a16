"""The norm of the whole model's gradient, as far as a stage knows it when it steps.

Problem: to clip by the norm of the whole model needs a number from every stage before any steps; a pipeline
that waits for those has a bubble in every update. Solution: each stage's norm rides on frames that flow
anyway, and what is used follows from indices alone. With q_r(u) the norm of stage r's gradient of batch u,
stage s steps batch u by the norm over

    q_s(u), its own,
    q_r(u) of every stage r after it: on the gradient of the batch's last micro-batch, i = (u+1)m - 1,
    q_r(v-1) of every stage r before it: on the activation of that same micro-batch, which stage r forwarded
        at version v = max(0, i-τ_r) // m: u where τ_r < m, and u-1 where τ_r = m,

so the first stage by the exact norm, the others by one whose part from before them is an update old. What is
not known yet (v = 0) counts as 0. The early step for batch u+1 is a guess at step u, when neither number of
that step has come for certain: it takes the others' part of step u-1.

Source: docs/adr/0020.
"""

from __future__ import annotations

import math


class GlobalNorm:
    """What one stage has heard and says; batches and micro-batches count from 0 within the generation.

    Args:
        microbatches_per_update: m.
    """

    def __init__(self, microbatches_per_update: int) -> None:
        self._m = microbatches_per_update
        self._own: dict[int, float] = {}
        self._before: dict[int, float] = {}
        self._after: dict[int, float] = {}

    def batch_ended_by(self, i: int) -> int | None:
        """The batch of which micro-batch `i` is the last; only such a one's frames carry norms."""
        return i // self._m if i % self._m == self._m - 1 else None

    def complete(self, u: int, norm: float) -> None:
        """The own gradient of batch `u`; one that is not finite is not applied, and counts nothing."""
        self._own[u] = norm if math.isfinite(norm) else 0.0
        for known in (self._own, self._before, self._after):
            for old in [batch for batch in known if batch < u - 2]:
                del known[old]

    def forwarded(self, i: int, version: int, heard: float) -> float:
        """What the activation of micro-batch `i` carries on.

        Args:
            version: updates in the weights of its forward.
            heard: what it brought.
        """
        u = self.batch_ended_by(i)
        if u is None:
            return 0.0
        self._before[u] = heard
        return math.hypot(heard, self._own.get(version - 1, 0.0))

    def taken_back(self, i: int, heard: float) -> float:
        """What the gradient of micro-batch `i` carries back, the own one being complete with it."""
        u = self.batch_ended_by(i)
        if u is None:
            return 0.0
        self._after[u] = heard
        return math.hypot(heard, self._own.get(u, 0.0))

    def others(self, u: int) -> float:
        """The norm over all other stages by which batch `u` is stepped."""
        return math.hypot(self._before.get(u, 0.0), self._after.get(u, 0.0))
