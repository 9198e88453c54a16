"""How long a search goes on."""

from __future__ import annotations

from typing import NamedTuple

SCOUTED, SOME, FEW, CHILDREN = 20, 4, 2, 24
"""Values of Q that are scouted at most, those that are looked at longer and longest, and children."""

SHARES = (0.3 / SCOUTED, 0.25 / SOME, 0.25 / FEW, 0.2 / CHILDREN)
"""Of all moves, each of those at a scouted Q, at some of the best of these, at a few of the best of those,
and a child's."""

MOVES, HALF_AT = 7_500_000, 150
"""Moves of a search of very many peers, and how many peers get half as many."""

POLISH = 300
"""Changes tried on a plan at the end."""

QUICK = "quick"
BUDGETS = {QUICK: 0.2, "normal": 1.0, "thorough": 5.0}
"""Share of these moves."""


class Effort(NamedTuple):
    """Moves of each scouted Q, at some of the best, at a few of the best of these, and of each child.

    And changes tried on each plan at the end.
    """

    scout: int
    some: int
    few: int
    child: int
    polish: int


def effort_for(peers: int, budget: str) -> Effort:
    """How long a search of so many peers goes on: about a second for 350,000 to 500,000 moves.

    Args:
        budget: of `BUDGETS`.
    """
    moves = BUDGETS[budget] * MOVES * (peers + 1) / (peers + HALF_AT)
    scout, some, few, child = (int(moves * share) for share in SHARES)
    return Effort(scout, some, few, child, int(BUDGETS[budget] * POLISH))
