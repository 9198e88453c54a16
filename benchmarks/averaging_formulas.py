"""What an averaging should take of C members who hold S bytes each, on lines that are all alike.

steps   hops of the longest way of a chunk, there and back: 2(C−1) in a ring,
        2(rows−1 + columns−1) in a grid
bytes   2(C−1)/C · S that each sends, in rings and in grids
time    bytes / rate + steps · latency until the last mean is there. Ways begin at all members, so nobody
        waits for the first chunk to come by. Where several chunks take each way, they fill the waiting
        of others, and the latency counts for less. The mean's way there and back again, twice the
        steps in all, and everybody knows that all have it
bound   max over the peers of 2(C−1)/C · S / B: B the slower direction of the peer's line, S over all
        its segments
memory  the vector that is gathered, one copy of S, in which means are kept too; and the sums that wait
        for others or for the line, at most as many as chunks are underway: eight for each member
"""

from __future__ import annotations

from typing import Any

from benchmarks.common import Goal

RATE_BPS = 100e6
LATENCY_S = 0.02
"""One way."""

Section = tuple[dict[str, Any], list[Goal]]


def steps(members: int, columns: int) -> int:
    """Hops of the longest way; a grid with one or two longer rows may take one fewer."""
    rows = -(-members // columns)
    return 2 * (-(-members // rows) - 1 + rows - 1)


def sent_bytes(members: int, size_bytes: float) -> float:
    return 2 * (members - 1) / members * size_bytes
