"""What is done with the mean of what clusters learned in a round: taken as it is, or as a gradient.

The mean difference of many local updates points where training goes, and a momentum over rounds goes on where
rounds agree (DiLoCo). Every member takes the same steps from the same bits, element by element, so
all hold the same weights without sending more. Between rounds it keeps one vector at most.

Source: arXiv 2311.08105 (DiLoCo: Nesterov, rate 0.7, momentum 0.9).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ravnest_p2p.core.averaging import DIFFERENCES, NESTEROV, NONE, check_averaging
from ravnest_p2p.training.averaging import Chunk


class OuterSpec(NamedTuple):
    """An outer optimizer; "none" has neither number.

    Attributes:
        lr: 1 takes the mean as it is.
        momentum: 0 keeps nothing between rounds.
    """

    name: str = NONE
    lr: float = 1.0
    momentum: float = 0.0


DILOCO = OuterSpec(NESTEROV, lr=0.7, momentum=0.9)


class Outer:
    """One member's, of one segment.

    Args:
        spec: the same at every member.
    Attributes:
        velocity: shape (elements,), float32; None without momentum, and before the first step. It belongs
            to the state that is saved with the weights.
    Raises:
        ConfigError: an unknown name, or a number out of its bounds.
    """

    def __init__(self, spec: OuterSpec) -> None:
        check_averaging(DIFFERENCES, *spec)
        self._spec = spec
        self.velocity: Chunk | None = None

    def step(self, weights: Chunk, difference: Chunk) -> None:
        """Move the weights.

        Args:
            weights: shape (elements,), float32: the last common ones; changed in place.
            difference: same shape: mean of what members have become, less the last common weights.
        """
        name, lr, momentum = self._spec.name, np.float32(self._spec.lr), np.float32(self._spec.momentum)
        if name == NONE:
            weights += difference
            return
        if momentum:
            if self.velocity is None:
                self.velocity = np.zeros_like(difference)
            self.velocity *= momentum
            self.velocity += difference
        if name == NESTEROV and self.velocity is not None:
            weights += lr * (difference + momentum * self.velocity)
        else:
            weights += lr * (difference if self.velocity is None else self.velocity)
