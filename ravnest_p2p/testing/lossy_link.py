"""One direction of a resumable stream whose connection breaks and repeats frames.

Problem: a schedule proven on a perfect network proves little. Solution: the simulated link runs the product's
own `Outbox` and `Inbox` over a wire that drops everything in flight when it breaks, reconnects after a while,
and repeats frames; what it delivers must still be each payload once, in order.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from ravnest_p2p.core.delivery import Inbox, Outbox, Verdict
from ravnest_p2p.testing.clock import VirtualClock

Payload = TypeVar("Payload")


@dataclass(frozen=True)
class Faults:
    """What goes wrong on a link, per frame or receipt put on the wire."""

    break_probability: float = 0.0
    repeat_probability: float = 0.0
    reconnect_s: float = 5.0
    jitter_s: float = 0.0


class LossyLink(Generic[Payload]):
    """Carries payloads one way, in order, each once, over connections that break.

    Args:
        frames: the sender's credit.
        deliver: called with each payload at its arrival.
    """

    def __init__(
        self,
        clock: VirtualClock,
        rng: random.Random,
        latency_s: float,
        faults: Faults,
        frames: int,
        deliver: Callable[[Payload], None],
    ) -> None:
        self.breaks = 0
        self.repeats = 0
        self._clock, self._rng, self._latency_s, self._faults = clock, rng, latency_s, faults
        self._deliver = deliver
        self._outbox = Outbox(max_frames=frames, max_bytes=frames)
        self._inbox = Inbox(receipt_frames=max(1, frames // 2))
        self._held: dict[int, Payload] = {}
        self._waiting: list[Payload] = []
        self._connection: int | None = 0
        self._wire_free_s = 0.0

    def send(self, payload: Payload) -> None:
        self._waiting.append(payload)
        self._push()

    def _push(self) -> None:
        while self._waiting and self._outbox.can_send(1):
            seq = self._outbox.push(1)
            self._held[seq] = self._waiting.pop(0)
            self._put(partial(self._frame, seq))

    def _put(self, arrive: Callable[[], None]) -> None:
        """Put something on the wire of the present connection; it is lost if that breaks on the way."""
        connection = self._connection
        if connection is None:
            return
        if self._rng.random() < self._faults.break_probability:
            self._connection = None
            self.breaks += 1
            self._clock.after(self._faults.reconnect_s, self._reconnect, connection + 1)
            return

        def arrived() -> None:
            if self._connection == connection:
                arrive()

        at_s = self._clock.now_s + self._latency_s + self._rng.uniform(0, self._faults.jitter_s)
        self._wire_free_s = max(self._wire_free_s, at_s)
        self._clock.at(self._wire_free_s, arrived)
        if self._rng.random() < self._faults.repeat_probability:
            self.repeats += 1
            self._clock.at(self._wire_free_s, arrived)

    def _reconnect(self, connection: int) -> None:
        self._connection = connection
        again = self._outbox.resume(self._inbox.next_expected)
        self._forget_below(again.start)
        for seq in again:
            self._put(partial(self._frame, seq))
        self._push()

    def _frame(self, seq: int) -> None:
        payload = self._held.get(seq)
        if self._inbox.accept(seq) is Verdict.DELIVER:
            assert payload is not None, "a frame was forgotten before it arrived"
            self._deliver(payload)
        receipt = self._inbox.receipt()
        if receipt is not None:
            self._put(partial(self._receipt, receipt))

    def _receipt(self, next_expected: int) -> None:
        self._outbox.acknowledge(next_expected)
        self._forget_below(next_expected)
        self._push()

    def _forget_below(self, seq: int) -> None:
        for held in [s for s in self._held if s < seq]:
            del self._held[held]
