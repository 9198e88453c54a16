"""How fast a stage computes and its links carry, from which "auto" chooses a codec for each frame."""

from __future__ import annotations

import math
from collections import deque

from ravnest_p2p.core.pipeline.schedule import Backward, Forward, Op
from ravnest_p2p.network.links import Link

FRAMES_KEPT = 32
_SHARE = 0.2


class ComputeTime:
    """Seconds of computation for one micro-batch, forward and backward: a moving mean of each."""

    def __init__(self) -> None:
        self._means: dict[type[Op], float] = {}

    @property
    def seconds(self) -> float:
        """0 until both were measured."""
        return sum(self._means.values()) if len(self._means) == 2 else 0.0

    def took(self, op: Op, seconds: float) -> None:
        """A forward or backward took so long; others do not count."""
        if isinstance(op, Forward | Backward):
            mean_s = self._means.get(type(op), seconds)
            self._means[type(op)] = mean_s + _SHARE * (seconds - mean_s)


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
