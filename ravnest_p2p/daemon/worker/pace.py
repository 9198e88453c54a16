"""How fast a stage computes and its links carry, from which "auto" chooses a codec for each frame."""

from __future__ import annotations

import math
import time
from collections import deque

from ravnest_p2p.network.links import Link

FRAMES_KEPT = 32
_SHARE = 0.2


class ComputeTime:
    """Seconds of computation for one micro-batch, forward and backward: a moving mean of each.

    The one thread that computes does one of them at a time, so one ends where the other begins.
    """

    def __init__(self) -> None:
        self._means: dict[str, float] = {}
        self._running: tuple[str, float] | None = None

    @property
    def seconds(self) -> float:
        """0 until both were measured."""
        return sum(self._means.values()) if len(self._means) == 2 else 0.0

    def begins(self, work: str) -> None:
        """`work`, "forward" or "backward", begins."""
        self.ends()
        self._running = (work, time.monotonic())

    def ends(self) -> None:
        """What began last is over, if it was not before."""
        if self._running is None:
            return
        work, since_s = self._running
        self._running = None
        took_s = time.monotonic() - since_s
        mean_s = self._means.get(work, took_s)
        self._means[work] = mean_s + _SHARE * (took_s - mean_s)


class LinkRate:
    """What a link carries in our direction, over its last frames."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._totals: deque[tuple[int, float]] = deque(maxlen=FRAMES_KEPT + 1)

    @property
    def bps(self) -> float:
        """Bits a second while frames were being written, infinity where buffers took them at once.

        Too high where little is sent, since buffers then take a part of each frame; true where the line is
        full, which is when it matters.
        """
        self._totals.append((self._link.bytes_sent, self._link.write_s))
        sent = self._totals[-1][0] - self._totals[0][0]
        seconds = self._totals[-1][1] - self._totals[0][1]
        return 8 * sent / seconds if seconds > 0 else math.inf
