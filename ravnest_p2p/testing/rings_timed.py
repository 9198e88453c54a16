"""How long an averaging takes on links of given rates and latencies: `core.rings.round` in virtual time.

Each member sends one chunk at a time over its uplink, in turn to whom something is due, and takes one at a
time from its downlink.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

from ravnest_p2p.core.rings import Ring, SegmentRound, Send, Ways, chunk_bounds, deliver, neighbours
from ravnest_p2p.testing.clock import VirtualClock

NOTE_BYTES = 100
"""Of a frame beside its chunk."""


class Counted:
    """Arithmetic of chunks without content."""

    def part(self, chunk: int, share: float) -> int:
        return chunk

    def add(self, chunk: int, share: float, sums: Sequence[int]) -> int:
        return chunk

    def hold(self, chunk: int, mean: int) -> int:
        return chunk


@dataclass(slots=True)
class Taken:
    """Of one member.

    Attributes:
        seconds: until it knew that all have the mean.
    """

    seconds: float = 0.0
    bytes_sent: int = 0
    stored: int = 0


def average(
    size_bytes: int,
    chunks: int,
    rates_bps: Sequence[float],
    latency_s: float = 0.0,
    ways: Callable[[int], Ways] = Ring,
) -> list[Taken]:
    """One segment's round.

    Args:
        rates_bps: of each member, up and down alike.
    """
    clock, size = VirtualClock(), len(rates_bps)
    rounds = [SegmentRound(rank, [1.0] * size, chunks, Counted(), ways) for rank in range(size)]
    lengths = [stop - start for start, stop in chunk_bounds(size_bytes, chunks)]
    shape = ways(size)
    links = [sorted(set().union(*neighbours(shape, rank))) for rank in range(size)]
    turns = [cycle(its) for its in links]
    busy, down_s = [False] * size, [0.0] * size
    taken = [Taken() for _ in range(size)]

    def look(rank: int) -> None:
        if busy[rank]:
            return
        for other in islice(turns[rank], len(links[rank])):
            send = rounds[rank].next_for(other)
            if send is not None:
                length = NOTE_BYTES + (0 if send.chunk is None else lengths[send.chunk])
                taken[rank].bytes_sent += length
                busy[rank] = True
                clock.after(length * 8 / rates_bps[rank], free, rank)
                took_s = length * 8 / rates_bps[other]
                sent_s = clock.now_s + latency_s + length * 8 / rates_bps[rank]
                down_s[other] = max(sent_s, max(clock.now_s + latency_s, down_s[other]) + took_s)
                clock.at(down_s[other], arrive, rank, other, send)
                return

    def free(rank: int) -> None:
        busy[rank] = False
        look(rank)

    def arrive(sender: int, rank: int, send: Send[int]) -> None:
        deliver(rounds[rank], sender, send)
        taken[rank].stored = max(taken[rank].stored, rounds[rank].stored)
        if rounds[rank].outcome is not None and not taken[rank].seconds:
            taken[rank].seconds = clock.now_s
        look(rank)

    for rank in range(size):
        look(rank)
    clock.run_until(math.inf)
    return taken
