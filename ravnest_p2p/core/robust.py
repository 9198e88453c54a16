"""How the contributions of a segment's members become one mean, and how many liars each way withstands.

| name    | of each value                                       | withstands, of n members             |
|---------|-----------------------------------------------------|--------------------------------------|
| mean    | the mean by samples                                 | none: one moves it as far as it wants |
| trimmed | the mean by samples of those between the extremes   | a quarter, rounded down; one of three |
| clipped | the mean by samples of what is not too far from all | fewer than half                       |

Only who sees every contribution by itself can do more than add them up, so all but `mean` need a round in
which each chunk has one owner (`core.rings.Star`). Two members cannot say which of them lies.
"""

from __future__ import annotations

MEAN, TRIMMED, CLIPPED = MEANS = ("mean", "trimmed", "clipped")


def withstands(means: str, members: int) -> int:
    """Liars among so many contributions that cannot move the result beyond what the others brought."""
    if members < 3 or means == MEAN:
        return 0
    return (members - 1) // 2 if means == CLIPPED else max(1, members // 4)
