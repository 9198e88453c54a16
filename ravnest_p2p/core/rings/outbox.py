"""What is ready for the other members, and which of it goes next.

Problem: a link takes one frame at a time, and what it takes next decides how long a round is: a sum that has
many hops before it must not wait behind a mean that is nearly there, and nobody may begin so many chunks that
others cannot store them. Solution: of what is ready for a link, that with the longest rest of its way goes
first; chunks that a member starts by itself are a queue of their own, of which at most `window` are underway
to each other member. Receipts ride on chunks, or go alone where nothing else does.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field

from ravnest_p2p.core.rings.messages import Kind

NOTES = 2
"""Receipts that wait at most for a chunk to ride on."""


@dataclass(slots=True)
class Outbox:
    """What is ready for one member.

    Attributes:
        ready: (minus the hops to go, chunk, kind), a heap.
        fresh: chunks whose sum begins here, in order, and the hops that each has to go.
        underway: of these, what was sent and is not yet known to be a mean at all behind.
        held, settled: receipts, as in `Send`.
    """

    window: int
    ready: list[tuple[int, int, Kind]] = field(default_factory=list)
    fresh: deque[tuple[int, int]] = field(default_factory=deque)
    underway: set[int] = field(default_factory=set)
    held: list[int] = field(default_factory=list)
    settled: list[int] = field(default_factory=list)

    def put(self, togo: int, chunk: int, kind: Kind) -> None:
        """A sum or mean that is here, and so many hops from the end of its way."""
        heapq.heappush(self.ready, (-togo, chunk, kind))

    @property
    def may_start(self) -> bool:
        """A chunk may begin its way now."""
        return bool(self.fresh) and len(self.underway) < self.window

    @property
    def idle(self) -> bool:
        """No chunk is due."""
        return not (self.ready or self.may_start)

    def take(self) -> tuple[Kind, int, bool] | None:
        """The next chunk, and whether it begins its way; None where none is due."""
        may_start = self.may_start
        if self.ready and not (may_start and self.fresh[0][1] > -self.ready[0][0]):
            _, chunk, kind = heapq.heappop(self.ready)
            return kind, chunk, False
        if may_start:
            chunk, _ = self.fresh.popleft()
            self.underway.add(chunk)
            return Kind.SUM, chunk, True
        return None

    def take_notes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """All receipts, held and settled."""
        notes = tuple(self.held), tuple(self.settled)
        self.held.clear()
        self.settled.clear()
        return notes
