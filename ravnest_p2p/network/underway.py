"""How much several connections should have underway together, by what the system counts of each.

Problem: TCP learns what a line carries by sending more until something is lost. Several connections that do
so side by side lose together, hundreds of segments at once, and what all wait for comes round trips later.
Solution: receipts tell what the line delivers. A little more underway than it delivers in a round trip keeps
it full; whatever goes beyond waits in a queue on the way, or is lost, and so it waits here. While every round
trip delivers more than any before, what is underway may grow nearly as fast as in TCP's slow start.

Against a sender that keeps the queue full, this one gives way, down to `LEAST_BYTES`.

Source: arXiv 1909.04795 (BBR has such a bound; here TCP's own control stays in force below it).
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

MORE, GROWING = 1.25, 1.75
"""Times what the line delivers in a round trip: once that is known, and while it still grows by a tenth."""

LEAST_BYTES = 1 << 18
"""That may be underway whatever was measured: some twenty segments of each of eight connections."""

LOOK_S = 0.005
TRIPS = 16
"""Round trips that are remembered: of those in which there was something to send from begin to end."""

_INFO_BYTES = 152
_MSS_AT, _UNACKED_AT, _ACKED_AT, _UNSENT_AT = 16, 24, 120, 144
"""Where linux has them in what it tells of a connection; the least round trip comes after what is unsent."""


class Counted(NamedTuple):
    """What the system has counted of one connection.

    Attributes:
        underway: bytes sent and not acknowledged, and those that wait to be sent.
        acked: bytes acknowledged so far.
        least_rtt_s: round trip when nothing waited.
    """

    underway: int
    acked: int
    least_rtt_s: float


def counted(connection: Any) -> Counted | None:
    """None where the system does not tell."""
    with suppress(OSError, AttributeError, struct.error):
        told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
        mss, unacked = (struct.unpack_from("@I", told, at)[0] for at in (_MSS_AT, _UNACKED_AT))
        (acked,) = struct.unpack_from("@Q", told, _ACKED_AT)
        unsent, least_us = struct.unpack_from("@II", told, _UNSENT_AT)
        return Counted(unacked * mss + unsent, acked, least_us / 1e6)
    return None


class Underway:
    """Of one bundle.

    Attributes:
        room: bytes that may be sent until the next look; who sends takes them off.
    """

    def __init__(self) -> None:
        self.room = float(LEAST_BYTES)
        self._rates: deque[float] = deque(maxlen=TRIPS)
        self._begun: tuple[float, int] | None = None
        self._more = GROWING

    def look(self, now_s: float, connections: Sequence[Counted]) -> None:
        """Some time has passed.

        Args:
            connections: all of the bundle; where the system counts nothing there are none, and no bound.
        """
        if not connections:
            self.room = float("inf")
            return
        underway, acked = sum(its.underway for its in connections), sum(its.acked for its in connections)
        rtt_s = min(its.least_rtt_s for its in connections)
        if not underway and self.room > 0:
            self._begun = None  # nobody had anything to send
        elif self._begun is None:
            self._begun = now_s, acked
        elif now_s - self._begun[0] >= rtt_s:
            self._measured((acked - self._begun[1]) / (now_s - self._begun[0]))
            self._begun = now_s, acked
        self.room = max(LEAST_BYTES, self._more * max(self._rates, default=0.0) * rtt_s) - underway

    def _measured(self, bytes_s: float) -> None:
        self._more = GROWING if bytes_s > 1.1 * max(self._rates, default=0.0) else MORE
        self._rates.append(bytes_s)
