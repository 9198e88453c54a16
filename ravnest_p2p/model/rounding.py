"""Tell rounding from error: may two results differ as much as they do, if both are right?

Problem: a model may take another of two equal formulas when it is traced (a mask for a causal flag, heads
repeated for heads shared), and then no bit need be the same, while a lost gradient or a wrong constant must
not pass. No fixed tolerance serves: a gradient that is zero but for rounding may differ by all of its size.
Solution: ask the model itself. Its weights are nudged by their last bit, some of them at random, and how far
its own results move is what rounding can do to each; a difference beyond a few times that is an error. A
model that does not repeat itself (a counter in Python) has no say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor

TRIALS = 3
TIMES = 4.0
"""How many times the movement under nudged weights a difference may be."""
LEAST = 2.0**-21
"""Of the result's size: what the last bits of float32 may do to anything, whatever the trials say."""

Place = TypeVar("Place")


def nudge(tensors: Iterable[Tensor], trial: int) -> None:
    """Move every number of the floating-point tensors by one unit in its last place, up, down or not at all.

    In place, each memory once; the same for the same trial, and torch's own generator is left alone.
    """
    generator = torch.Generator().manual_seed(trial)
    seen: set[int] = set()
    with torch.no_grad():
        for tensor in tensors:
            if tensor.is_floating_point() and tensor.data_ptr() not in seen:
                seen.add(tensor.data_ptr())
                signs = torch.randint(-1, 2, tensor.shape, generator=generator)
                tensor.addcmul_(tensor, signs.to(tensor.dtype), value=torch.finfo(tensor.dtype).eps)


def distance(found: Tensor, other: Tensor) -> float:
    """Euclidean distance; infinite where no rounding explains it: shape, integers, or what is not finite."""
    if found.shape != other.shape or not found.is_floating_point():
        return float("inf")
    finite = found.isfinite()
    if not torch.equal(finite, other.isfinite()) or not torch.equal(
        found[~finite].nan_to_num(7e6), other[~finite].nan_to_num(7e6)
    ):
        return float("inf")
    return float((found[finite].double() - other[finite].double()).norm())


def beyond_rounding(
    distances: Mapping[Place, float], results: Callable[[int | None], Mapping[Place, Tensor]]
) -> Place | None:
    """The first result that differs by more than rounding can do, None where there is none.

    A model whose results change from run to run differs in all of them.

    Args:
        distances: of two sides, by result.
        results: those of the model itself with weights nudged in this trial, or left alone for None.
    """
    own = results(None)
    moved: dict[Place, list[float]] = {place: [] for place in distances}
    for trial in range(TRIALS):
        nudged = results(trial)
        for place in distances:
            moved[place].append(distance(nudged[place], own[place]))
    again = results(None)
    if any(not torch.equal(again[place].nan_to_num(), own[place].nan_to_num()) for place in distances):
        return next(iter(distances))
    for place, gap in distances.items():
        least = LEAST * float(own[place].double().nan_to_num(0.0, 0.0, 0.0).norm())
        if gap > max(TIMES * median(moved[place]), least):
            return place
    return None
