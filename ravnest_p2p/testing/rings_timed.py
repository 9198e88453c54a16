"""How long an averaging takes on lines of given rates and latencies: `core.rings.round` in virtual time.

Problem: what a thousand clusters take cannot be tried out, and a peer that holds several segments, with
other peers each, has one line for all of them. Solution: the product's state machine runs for each holder of
each segment. A peer sends one chunk at a time over its uplink, in turn to whom something is due, whichever
segment it is of, and takes one at a time from its downlink. Times, bytes and hops are exact, and the same on
every machine.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ravnest_p2p.core.rings import Ring, SegmentRound, Send, Ways, chunk_bounds, deliver, neighbours
from ravnest_p2p.testing.clock import VirtualClock

NOTE_BYTES = 100
"""Of a frame beside its chunk."""


class Line(NamedTuple):
    """A peer's line, bits a second."""

    up_bps: float
    down_bps: float


class Share(NamedTuple):
    """A segment to average.

    Attributes:
        members: its holders in ring order, as indices into the lines.
    """

    size_bytes: int
    chunks: int
    members: Sequence[int]
    ways: Callable[[int], Ways] = Ring


@dataclass(slots=True)
class Taken:
    """Of one peer, over all its segments.

    Attributes:
        mean_s: when its last mean was there.
        seconds: when it knew that all have the means.
        hops: of the longest way that a mean took to it, that of its sum included.
        sums_bytes, stored_bytes: most at once of sums that it kept, and of sums and means.
    """

    mean_s: float = 0.0
    seconds: float = 0.0
    hops: int = 0
    bytes_sent: int = 0
    sums_bytes: int = 0
    stored_bytes: int = 0


class Counted:
    """Arithmetic of chunks whose content is the hops they have taken."""

    def __init__(self, clock: VirtualClock, taken: Taken) -> None:
        self._clock = clock
        self._taken = taken

    def part(self, chunk: int, share: float) -> int:
        return 0

    def add(self, chunk: int, share: float, sums: Sequence[int]) -> int:
        return max(sums, default=0)

    def hold(self, chunk: int, mean: int) -> int:
        self._taken.mean_s = self._clock.now_s
        self._taken.hops = max(self._taken.hops, mean)
        return mean


def average(
    size_bytes: int,
    chunks: int,
    rates_bps: Sequence[float],
    latency_s: float = 0.0,
    ways: Callable[[int], Ways] = Ring,
) -> list[Taken]:
    """One segment's round; each member's rate is that of both its directions."""
    share = Share(size_bytes, chunks, range(len(rates_bps)), ways)
    return average_all([Line(rate, rate) for rate in rates_bps], [share], latency_s)


def average_all(
    lines: Sequence[Line], shares: Sequence[Share], latency_s: float = 0.0, window: int | None = None
) -> list[Taken]:
    """All segments' rounds at once; what each peer took."""
    clock = VirtualClock()
    peers = [_Peer(line, clock, latency_s) for line in lines]
    for share in shares:
        weights, shape = (1.0,) * len(share.members), share.ways(len(share.members))
        lengths = [stop - start for start, stop in chunk_bounds(share.size_bytes, share.chunks)]
        holders: list[_Holder] = []

        def same(_: int, shape: Ways = shape) -> Ways:
            return shape

        for rank, member in enumerate(share.members):
            peer = peers[member]
            machine = SegmentRound(rank, weights, share.chunks, Counted(clock, peer.taken), same, window)
            holders.append(_Holder(peer, rank, machine, lengths))
        for holder in holders:
            others = set().union(*neighbours(shape, holder.rank, share.chunks))
            holder.peer.turns.extend((holder, holders[other]) for other in sorted(others))
            holder.peer.holders.append(holder)
    for peer in peers:
        peer.look()
    clock.run_until(math.inf)
    return [peer.taken for peer in peers]


class _Holder(NamedTuple):
    """A peer's part in one segment."""

    peer: _Peer
    rank: int
    machine: SegmentRound[int]
    lengths: Sequence[int]


class _Peer:
    """One line, and all that goes over it."""

    def __init__(self, line: Line, clock: VirtualClock, latency_s: float) -> None:
        self.taken = Taken()
        self.holders: list[_Holder] = []
        self.turns: deque[tuple[_Holder, _Holder]] = deque()
        self._line = line
        self._clock = clock
        self._latency_s = latency_s
        self._busy = False
        self._down_s = 0.0

    def look(self) -> None:
        """Send what is due next, if the uplink is free."""
        if self._busy:
            return
        for _ in range(len(self.turns)):
            own, other = self.turns[0]
            self.turns.rotate(-1)
            send = own.machine.next_for(other.rank)
            if send is not None:
                self._send(own, other, send)
                return

    def _send(self, own: _Holder, other: _Holder, send: Send[int]) -> None:
        length = NOTE_BYTES + (0 if send.chunk is None else own.lengths[send.chunk])
        self.taken.bytes_sent += length
        self._busy = True
        sent_s = length * 8 / self._line.up_bps
        self._clock.after(sent_s, self._free)
        arrived_s = other.peer.receive(self._clock.now_s + self._latency_s, sent_s, length)
        self._clock.at(arrived_s, other.peer.arrive, other, own.rank, send)

    def _free(self) -> None:
        self._busy = False
        self.look()

    def receive(self, begun_s: float, sent_s: float, length: int) -> float:
        """When a frame that begins to arrive then, and takes so long to send, is through the downlink."""
        took_s = length * 8 / self._line.down_bps
        self._down_s = max(begun_s + sent_s, max(begun_s, self._down_s) + took_s)
        return self._down_s

    def arrive(self, holder: _Holder, sender: int, send: Send[int]) -> None:
        if send.payload is not None:
            formation, kind, chunk = send.formation, send.kind, send.chunk
            send = Send(formation, kind, chunk, send.payload + 1, send.held, send.settled)
        deliver(holder.machine, sender, send)
        sums_bytes = sum(its.machine.sums * its.lengths[0] for its in self.holders)
        means_bytes = sum(its.machine.means * its.lengths[0] for its in self.holders)
        self.taken.sums_bytes = max(self.taken.sums_bytes, sums_bytes)
        self.taken.stored_bytes = max(self.taken.stored_bytes, sums_bytes + means_bytes)
        if holder.machine.outcome is not None:
            self.taken.seconds = self._clock.now_s
        self.look()
