"""How far a mean may be from what a member brought itself.

Problem: where sums pass by, nobody sees another's contribution, and where a chunk has an owner, nobody sees
what that one did. What everybody can see is how far the mean is from its own part. Solution: clusters that
train the same model go about as far apart in one round as in those before, so a chunk whose mean is many
times further away than any was then is refused, and nothing of the segment is used.

What it is worth: whoever adds 1e30, or noise or another model's parameters, ends the round and does no harm.
What it is not: it does not say who did it; somebody can go as far as the bound in every round, a little
further each time; and before the first rounds have shown what is usual there is none. Where that matters,
means have to be robust (`robust`), which bounds each contribution by the others'.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np

from ravnest_p2p.core.errors import OutOfBoundsError

TIMES = 10.0
"""Of the largest distance in the rounds before. Of trainings of `benchmarks.kappa` none had more than 1.6."""

ROUNDS, FIRST_ROUNDS = 8, 2
"""That are looked back on, and that pass before there is a bound."""

SMALL = 1e-3
"""Of the own part's size; a mean that is no further away than this is never refused."""

Values = np.ndarray[Any, np.dtype[np.float32]]


class MeanBound:
    """Of one member and segment, over all rounds.

    Args:
        counted: chunks at the beginning whose distance is told (`spread`); all, where it is None.
    Attributes:
        spread: sum of squares of what the round under way showed of mean minus own part.
    """

    def __init__(self, counted: int | None = None) -> None:
        self.spread = 0.0
        self._counted = math.inf if counted is None else counted
        self._rounds: deque[float] = deque(maxlen=ROUNDS)
        self._most = 0.0
        self._apart = np.empty(0, np.float32)

    def begin(self) -> None:
        """A round begins. What one that failed showed does not count."""
        self._most = self.spread = 0.0

    def check(self, chunk: int, own: Values, mean: Values) -> None:
        """Look at a chunk before its mean takes the own part's place.

        Raises:
            OutOfBoundsError: the mean is too far away.
        """
        if len(self._apart) < len(own):
            self._apart = np.empty(len(own), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            apart = _size(np.subtract(mean, own, out=self._apart[: len(own)]))
        if len(self._rounds) >= FIRST_ROUNDS:
            usual = max(self._rounds)
            if not apart <= TIMES * usual and not apart <= SMALL * _size(own):
                raise OutOfBoundsError(
                    f"the mean of chunk {chunk} is {apart:.3g} from our values, "
                    f"where {usual:.3g} was the most in the last {len(self._rounds)} rounds"
                )
        if math.isfinite(apart):  # else it would bound nothing from now on
            self._most = max(self._most, apart)
            if chunk < self._counted:
                self.spread += apart * apart * len(own)

    def commit(self) -> None:
        """The round is over, and its means are used."""
        self._rounds.append(self._most)


def _size(values: Values) -> float:
    """Root of the mean square."""
    return math.sqrt(float(np.dot(values, values)) / max(1, len(values)))
