"""A line of a given rate with a queue before it, in virtual time: when does a packet leave it?"""

from __future__ import annotations


class Line:
    """Sends one packet after another; what would wait for too long is dropped, as a router does.

    Args:
        rate_bps: of the bits of whole packets.
        queue_s: how long a packet may wait for those before it.
    """

    def __init__(self, rate_bps: float, queue_s: float) -> None:
        self._rate_bps = rate_bps
        self._queue_s = queue_s
        self._busy_until_s = 0.0

    def through(self, now_s: float, size_bytes: int) -> float | None:
        """When a packet that comes now has been sent; None where it is dropped. Times must not fall."""
        waits_s = max(0.0, self._busy_until_s - now_s)
        if waits_s > self._queue_s:
            return None
        self._busy_until_s = now_s + waits_s + 8 * size_bytes / self._rate_bps
        return self._busy_until_s
