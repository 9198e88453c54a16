"""Models that do what tracing gets wrong: each has to be captured right, or refused by name."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.zoo.case import Case
from benchmarks.zoo.odd import control, gradients, layers, loose, state

ODD: dict[str, Callable[[], Case]] = (
    gradients.CASES | state.CASES | control.CASES | layers.CASES | loose.CASES
)
"""One maker for each odd model."""


def make_odd(name: str, seed: int = 0) -> Case:
    """The odd model with that name."""
    torch.manual_seed(seed)
    return ODD[name]()
