"""Virtual time: hours of a swarm's life in a moment, and every run of a seed the same.

Problem: tests that wait for real time are slow and see other timings each time. Solution: a queue of future
calls; running the clock jumps from one to the next. Equal times are run in the order in which they were
set.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class VirtualClock:
    """Simulated time and what is to happen in it.

    Attributes:
        now_s: current simulated time, the true time of the whole simulation.
        events: calls made so far.
    """

    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s
        self.events = 0
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def at(self, time_s: float, call: Callable[..., None], *args: Any) -> None:
        """Call at a point in time; one in the past is called next, without time going back."""
        self._count += 1
        heapq.heappush(self._queue, (max(time_s, self.now_s), self._count, call, args))

    def after(self, delay_s: float, call: Callable[..., None], *args: Any) -> None:
        """Call after a delay."""
        self.at(self.now_s + delay_s, call, *args)

    def run_until(self, time_s: float) -> None:
        """Make all calls due up to and at this time, then stand at it."""
        queue = self._queue
        while queue and queue[0][0] <= time_s:
            self.now_s, _, call, args = heapq.heappop(queue)
            self.events += 1
            call(*args)
        self.now_s = max(self.now_s, time_s)
