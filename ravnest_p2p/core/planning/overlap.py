"""How many updates clusters train on while a round of averaging goes on beside them.

Problem: to stop for a round wastes what it takes, often more than a few updates on slow lines; to train on
makes its mean old by the time that it is taken, which costs quality, and the round slower, as it has to leave
activations a part of the links. By the clock it could not be decided: a run would never repeat. Solution: the
plan says a number of updates for each cluster: as many as the round is predicted to take on its part of the
links, with a margin, but none where training on would save hardly anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

NEVER, AUTO, ALWAYS = OVERLAPS = ("never", "auto", "always")
"""Whether a job's clusters train beside a round: not at all, where that saves time, or in any case."""

LINK_SHARE = 0.5
"""Most of a peer's link that a round takes beside training."""

MARGIN = 1.5
"""Times what a round is predicted to take: links and peers are measured wrongly by about so much."""

WORTH = 0.02
"""Of the time that a round's updates take: who saves less by training on, stops."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """What a job's rounds are predicted to take, seconds.

    Attributes:
        kappas: updates of a round, of each cluster.
        updates_s: one update of each cluster.
        stopped_s: averaging while nobody trains, which has the links to itself.
        beside_s: averaging beside training, on `LINK_SHARE` of the links.
        last: updates at the end of a round by which a mean has to be there.
    """

    kappas: tuple[int, ...]
    updates_s: tuple[float, ...]
    stopped_s: float
    beside_s: float
    last: int = 0

    @property
    def busy_s(self) -> float:
        """The updates of a round, of the cluster that takes longest."""
        return max(self._busy())

    def period_s(self, overlaps: Sequence[int]) -> float:
        """From one round to the next: the updates of a cluster, and what it waits for a mean.

        Args:
            overlaps: updates that each cluster trains before it takes the mean.
        """
        # A round that a cluster waits for gets the whole link.
        round_s, waited = (self.beside_s, LINK_SHARE) if any(overlaps) else (self.stopped_s, 1.0)
        hidden = [count * update_s for count, update_s in zip(overlaps, self.updates_s, strict=True)]
        return max(
            busy_s + waited * max(0.0, round_s - hidden_s)
            for busy_s, hidden_s in zip(self._busy(), hidden, strict=True)
        )

    def overlaps(self, mode: str) -> tuple[int, ...]:
        """Of each cluster, from 0 to its κ less `last`; all are 0, or none but those without so many.

        Args:
            mode: one of `OVERLAPS`.
        """
        none = (0,) * len(self.kappas)
        if mode == NEVER or len(self.kappas) < 2:
            return none
        some = tuple(map(self._overlap, self.kappas, self.updates_s))
        if mode == AUTO and self.period_s(none) - self.period_s(some) < WORTH * self.busy_s:
            return none
        return some

    def _overlap(self, kappa: int, update_s: float) -> int:
        most = max(0, kappa - self.last)
        return min(most, max(1, ceil(min(float(kappa), MARGIN * self.beside_s / update_s))))

    def _busy(self) -> list[float]:
        return [kappa * update_s for kappa, update_s in zip(self.kappas, self.updates_s, strict=True)]
