"""A network that delays, loses and splits, by a seed.

Problem: what the protocols must survive (loss, delay, a split network) seldom happens on a developer's
machine. Solution: messages are calls on the virtual clock, each with a delay or a loss drawn from a seeded
source, and peers of different sides of a partition do not hear each other, not even what is already on its
way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random
from typing import Any

from ravnest_p2p.core.types import PeerId

from .clock import VirtualClock

Receiver = Callable[[PeerId, Any], None]
"""Called with the sender and the message."""


class SimulatedNetwork:
    """Unreliable datagrams between peers.

    Args:
        loss: probability that a message is lost.
        delay_s: shortest and longest time under way.
    """

    def __init__(
        self,
        clock: VirtualClock,
        random: Random,
        loss: float = 0.0,
        delay_s: tuple[float, float] = (0.01, 0.2),
    ) -> None:
        self.loss = loss
        self._clock = clock
        self._random = random
        self._delay_s = delay_s
        self._receivers: dict[PeerId, Receiver] = {}
        self._side: dict[PeerId, int] = {}

    def attach(self, peer: PeerId, receive: Receiver) -> None:
        """Let a peer hear; a peer attached again replaces its former self."""
        self._receivers[peer] = receive

    def detach(self, peer: PeerId) -> None:
        """The peer is gone; what is under way to it is lost."""
        self._receivers.pop(peer, None)

    def side(self, peer: PeerId) -> int:
        """Which side of the partition the peer is on; 0 unless it was put elsewhere."""
        return self._side.get(peer, 0)

    def partition(self, *sides: Iterable[PeerId]) -> None:
        """Split the network; peers not named stay on side 0, those named are on sides 1, 2, ..."""
        self._side = {peer: number for number, side in enumerate(sides, 1) for peer in side}

    def heal(self) -> None:
        """Everybody reaches everybody again."""
        self._side = {}

    def send(self, sender: PeerId, receiver: PeerId, message: Any) -> None:
        """Send without any promise."""
        if self._random.random() < self.loss or self.side(sender) != self.side(receiver):
            return
        low_s, high_s = self._delay_s
        delay_s = low_s + (high_s - low_s) * self._random.random()
        self._clock.after(delay_s, self._deliver, sender, receiver, message)

    def _deliver(self, sender: PeerId, receiver: PeerId, message: Any) -> None:
        receive = self._receivers.get(receiver)
        if receive is not None and self.side(sender) == self.side(receiver):
            receive(sender, message)
