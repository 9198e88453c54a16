"""Which rounds clusters average, where how often is found while they train.

Problem: batches belong to clusters by round, pieces are saved by round, and micro-batches of the next round
are under way when one ends; a κ that changed with every round would change all of that. Solution: rounds stay
as the plan has them, of the least κ, and some are skipped: after so many of them as make up the κ that
`core.kappa` gives, one is averaged. Nothing is saved in between, so a failure costs what it would cost with a
round as long.

    rounds of κ = 5   0 1 2 3 4 5 6 7 8 9 …
    averaged          ^ ^   ^     ^       …   κ = 5, 5, 10, 15, …

The last one is always averaged.
"""

from __future__ import annotations

from typing import NamedTuple

from ravnest_p2p.core.errors import OurFault
from ravnest_p2p.core.kappa import Decision, Kappa, Seen

TOLD_IN = 2
"""Updates at the end of a round in which all stages learn what a mean that was taken before them showed
(`core.pipeline.round_numbers`), with any staleness: κm - 1 - τ micro-batches or more, of which τ ≤ m."""


class Due(NamedTuple):
    """A round that is averaged: its number, and those that were skipped before it."""

    number: int
    first: int


class Cadence:
    """Of one generation; the same at every member that is told the same.

    Args:
        kappa: decides, in multiples of `least`.
        least: updates of one round, on average over the clusters.
        rounds: of the generation.
    """

    def __init__(self, kappa: Kappa, least: int, rounds: int) -> None:
        self._kappa = kappa
        self._least = least
        self._rounds = rounds
        self._dues: list[Due] = []
        self._decided = 0
        for decision in (kappa.current, kappa.following):
            self._append(decision)

    @property
    def newest(self) -> Decision:
        """The decision that was made last."""
        return self._kappa.following

    def due(self, number: int) -> Due | None:
        """The round if it is averaged; None if it is skipped.

        Raises:
            OurFault: that is not decided yet (`undecided`).
        """
        if self.undecided(number) is not None:
            raise OurFault(f"whether round {number} is averaged is not decided yet")
        first = next((due.first for due in self._dues if due.first <= number <= due.number), number)
        if number == self._rounds - 1 or any(due.number == number for due in self._dues):
            return Due(number, first)
        return None

    def undecided(self, number: int) -> int | None:
        """The round whose numbers have to be told (`ended`) before that one is decided; None if it is."""
        last = number == self._rounds - 1
        return self._dues[self._decided].number if number > self._dues[-1].number and not last else None

    def ended(self, seen: Seen) -> Decision:
        """What the first averaged round that was not told yet showed; errors as of `Kappa.ended`."""
        decision = self._kappa.ended(seen)
        self._decided += 1
        self._append(decision)
        return decision

    def _append(self, decision: Decision) -> None:
        first = self._dues[-1].number + 1 if self._dues else 0
        self._dues.append(Due(first + max(1, round(decision.kappa / self._least)) - 1, first))
