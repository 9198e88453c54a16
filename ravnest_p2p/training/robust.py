"""Means of several members' values that a few liars cannot move far: trimmed and clipped.

Problem: in a mean one member's values, finite and huge, are everybody's next model. Solution:
who sees all contributions of a chunk by themselves compares them before it takes their mean.

`trimmed`, value by value: of n contributions the b smallest and the b largest do not count
(`core.robust.withstands`), of the rest the mean is taken by their samples. With at most b liars each value is
between the least and the largest that an honest member brought. It loses what only few members learned.

`clipped`, a chunk at a time: the centre is the median of each value, and what a contribution is apart from it
is cut to twice the median distance. With fewer than half of the members liars, the centre is between what
honest ones brought, and no contribution counts for more than twice the largest distance of an honest one.
Where all are about as far from the centre nothing is cut, and it is the mean by samples. The paper's centre
is the mean of the last round, which rounds of parameters do not keep.

Neither helps against an owner of chunks that lies about the mean of those (`bounds`), nor against liars that
stay among the honest ones' values and pull to one side. Samples count as the plan says, not as a member does;
one with most of the samples pulls accordingly, within these limits.

Source: arXiv 1803.01498 (trimmed means, by value); arXiv 2012.10333 (centred clipping).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ravnest_p2p.core import robust
from ravnest_p2p.core.errors import OurFault
from ravnest_p2p.training.averaging import Chunk, SegmentValues, refuse_non_finite
from ravnest_p2p.training.bounds import MeanBound

SLACK = 2.0
"""Times the median distance from the centre that counts in full."""


class RobustMean(NamedTuple):
    """What who completes a chunk does with all contributions to it.

    Attributes:
        means: a name of `core.robust.MEANS`.
        shares: of the other members that live, in the order of their ranks, and then the own
            (`core.rings.shares_before`). Who has none is left out.
    """

    means: str
    shares: Callable[[], Sequence[float]]

    def of(self, parts: Sequence[Chunk]) -> Chunk:
        """New array, finite.

        Args:
            parts: of the others and the own one, as they are, finite.
        Raises:
            NonFiniteError: what comes out is not finite.
            OurFault: these are no single parts: the ways are not those of a star.
        """
        shares = self.shares()
        if len(shares) != len(parts):
            raise OurFault(f"{len(parts)} parts of {len(shares)} members")
        counted = [pair for pair in zip(parts, shares, strict=True) if pair[1]]
        total = mean([values for values, _ in counted], [its for _, its in counted], self.means)
        refuse_non_finite(total)
        return total


class RobustValues(SegmentValues):
    """`SegmentValues` for `core.rings.Star`: who completes a chunk has all contributions, and compares them.

    Args:
        flat, chunks, bound: as there.
    """

    def __init__(self, flat: Tensor, chunks: int, robust: RobustMean, bound: MeanBound | None = None) -> None:
        super().__init__(flat, chunks, bound)
        self._robust = robust

    def part(self, chunk: int, share: float) -> Chunk:
        """The own part as it is, new memory; its share is known to who completes the chunk."""
        return super().part(chunk, 1.0 if share else 0.0)

    def add(self, chunk: int, share: float, sums: Sequence[Chunk]) -> Chunk:
        """The mean of the others' parts and the own one.

        Raises:
            NonFiniteError: NaN or infinity, in one of them or in what comes out.
            OurFault: these are no single parts: the ways are not those of a star.
        """
        if not sums:
            return self.part(chunk, share)
        for one in sums:
            refuse_non_finite(one)
        return self._robust.of((*sums, self._own[chunk]))


def mean(values: Sequence[Chunk], shares: Sequence[float], means: str) -> Chunk:
    """The mean of several members' values by one of `core.robust.MEANS`.

    Args:
        values: each of shape (length,), float32, finite; stay as they are.
        shares: of each, above 0; only their ratios count.
    Returns:
        New array, shape (length,), float32.
    """
    total = math.fsum(shares)
    weights = [np.float32(share / total) for share in shares]
    with np.errstate(over="ignore", invalid="ignore"):
        if means == robust.CLIPPED:
            return _clipped(values, weights)
        each_end = robust.withstands(means, len(values))
        return _trimmed(values, weights, each_end) if each_end else _plain(values, weights)


def _plain(values: Sequence[Chunk], weights: Sequence[np.float32]) -> Chunk:
    total = values[0] * weights[0]
    for one, weight in zip(values[1:], weights[1:], strict=True):
        total += one * weight
    return total


def _trimmed(values: Sequence[Chunk], weights: Sequence[np.float32], each_end: int) -> Chunk:
    ranked = _ranked(values)
    low, high = ranked[each_end], ranked[-1 - each_end]
    total, counted = np.zeros_like(low), np.zeros_like(low)
    for one, weight in zip(values, weights, strict=True):
        its = ((one >= low) & (one <= high)) * weight
        counted += its
        total += np.multiply(one, its, out=its)
    total /= counted
    return np.clip(total, low, high, out=total)  # what was rounded, or became infinite, is between them too


def _clipped(values: Sequence[Chunk], weights: Sequence[np.float32]) -> Chunk:
    ranked, half = _ranked(values), np.float32(0.5)
    centre: Chunk = ranked[(len(values) - 1) // 2] * half + ranked[len(values) // 2] * half
    distances = [_distance(one, centre) for one in values]
    radius = SLACK * sorted(distances)[(len(values) - 1) // 2]
    total = centre.copy()
    for one, weight, distance in zip(values, weights, distances, strict=True):
        if distance <= radius:
            total += (one - centre) * weight
        else:
            apart = one.astype(np.float64) - centre  # float32 may not hold it
            total += (apart * (float(weight) * radius / distance)).astype(np.float32)
    return total


def _distance(one: Chunk, centre: Chunk) -> float:
    apart = one - centre
    squared = float(np.dot(apart, apart))
    if not math.isfinite(squared):
        wide = one.astype(np.float64) - centre
        squared = float(np.dot(wide, wide))
    return math.sqrt(squared)


def _ranked(values: Sequence[Chunk]) -> list[Chunk]:
    """Of each value the least in the first row, and so on: neighbours trade places until none has to.

    Whole rows at once take a thirtieth of the time of a sort of every column.
    """
    rows = [one.copy() for one in values]
    for turn in range(len(rows)):
        for row in range(turn % 2, len(rows) - 1, 2):
            low = np.minimum(rows[row], rows[row + 1])
            np.maximum(rows[row], rows[row + 1], out=rows[row + 1])
            rows[row] = low
    return rows
