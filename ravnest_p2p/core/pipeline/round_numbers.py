"""What a round of averaging showed, over all layers: known to every stage of every cluster, the same bits.

Problem: how often to average follows from how far clusters are apart over the whole model (`core.kappa`), but
a stage's rounds tell it that of its own segments only, and to ask the other stages would be to wait.
Solution: each stage adds its own numbers to what came with an activation from the stages before it, and sends
the sum on with the next; at the last stage it is whole, and comes back with the gradients. All numbers are
integers, so that their sums do not depend on where a cluster cuts.

When it has come follows from indices alone. A stage knows its own numbers of round r when it takes in the
round's mean. Every micro-batch that all stages forward after that carries the sum on, and its gradient the
whole back; a stage that has all gradients of the next round's updates has it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

UNIT = 1 << 30
"""Of sums of squares: the integer that stands for 1."""

MOST = (1 << 62) - 1
MICRO = 1_000_000


class Numbers(NamedTuple):
    """Of some segments in one round; means over the members.

    Attributes:
        spread, norm: sums of squares of how far members were from the mean, and of the mean, in `UNIT`.
        round_us: what the slowest segment's averaging took, by the member that began it last.
        update_us: what a local update takes, summed over the segments.
        segments: how many.
    """

    spread: int = 0
    norm: int = 0
    round_us: int = 0
    update_us: int = 0
    segments: int = 0

    def plus(self, other: Numbers) -> Numbers:
        """Of both together."""
        sums = [min(MOST, a + b) for a, b in zip(self, other, strict=True)]
        return Numbers(*sums)._replace(round_us=max(self.round_us, other.round_us))

    @property
    def update_s(self) -> float:
        """One local update, seconds."""
        return self.update_us / MICRO / self.segments if self.segments else 0.0

    @property
    def round_s(self) -> float:
        return self.round_us / MICRO


class Told(NamedTuple):
    """What rides on a frame: of a round, the numbers of the stages before, or of all."""

    round: int
    numbers: Numbers


def of_segment(spread: float, norm: float, round_s: float, update_s: float) -> Numbers:
    """One segment's; whatever is not finite or negative counts as 0, and what is too large as the most."""
    scaled = (spread * UNIT, norm * UNIT, round_s * MICRO, update_s * MICRO)
    whole = [round(min(x, float(1 << 61))) if math.isfinite(x) and x > 0 else 0 for x in scaled]
    return Numbers(whole[0], whole[1], whole[2], whole[3], 1)


class RoundNumbers:
    """One stage's: tell it its own, and what frames bring; ask it what to send.

    Args:
        stage, stages: s and P.
    """

    def __init__(self, stage: int, stages: int) -> None:
        self._first, self._last = stage == 0, stage == stages - 1
        self._own: dict[int, Numbers] = {}
        self._before: Told | None = None
        self._onward: Told | None = None
        self._whole: dict[int, Numbers] = {}
        self._newest: Told | None = None

    def own(self, number: int, numbers: Numbers) -> None:
        """This stage's own, of a round whose mean it takes in."""
        self._own[number] = numbers
        self._add()

    def before(self, told: Told | None) -> None:
        """What came with an activation."""
        if told is not None:
            self._before = told
            self._add()

    def whole(self, told: Told | None) -> None:
        """What came with a gradient."""
        if told is not None and (self._newest is None or told.round > self._newest.round):
            self._whole[told.round] = told.numbers
            self._newest = told

    def onward(self) -> Told | None:
        """To send with each activation."""
        return None if self._last else self._onward

    def back(self) -> Told | None:
        """To send with each gradient."""
        return self._newest

    def of(self, number: int) -> Numbers | None:
        """Of all stages; None where they are not known yet. Asked for in order, each once."""
        found = self._whole.get(number)
        if found is not None:
            for known in (self._own, self._whole):
                for old in [other for other in known if other < number]:
                    del known[old]
        return found

    def _add(self) -> None:
        told = Told(max(self._own), Numbers()) if self._first and self._own else self._before
        if told is None or told.round not in self._own:
            return
        self._onward = Told(told.round, told.numbers.plus(self._own[told.round]))
        if self._last:
            self.whole(self._onward)
