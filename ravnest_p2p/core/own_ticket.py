"""One peer's ticket of one epoch: drawn once, and published once it is low enough.

Problem: all peers may lead, but thousands of tickets would swamp the directory. Solution: only those under a
threshold are published, about as many as are wanted. The threshold doubles with each silent term, so that
somebody is always under it.
"""

from __future__ import annotations

from .ballot import DrawTicket, PublishTicket
from .tickets import TICKET_SPACE


class OwnTicket:
    """Of an epoch.

    Args:
        wanted: about so many peers publish theirs at once.

    Attributes:
        value: None until it was drawn.
        published: whether others may know it.
    """

    def __init__(self, epoch: int, wanted: int) -> None:
        self.value: int | None = None
        self.published = False
        self._epoch = epoch
        self._wanted = wanted
        self._drawn = False

    def silence(self) -> None:
        """A term has passed without a plan: more tickets are wanted."""
        self._wanted = min(2 * self._wanted, TICKET_SPACE)

    def due(self, previous_hash: str, expected: int) -> list[DrawTicket | PublishTicket]:
        """What is to be done for it now.

        Args:
            previous_hash: of the plan that is obeyed.
            expected: peers of the swarm.
        """
        actions: list[DrawTicket | PublishTicket] = []
        if not self._drawn:
            self._drawn = True
            actions.append(DrawTicket(self._epoch, previous_hash))
        low = self.value is not None and self.value * expected < TICKET_SPACE * self._wanted
        if low and not self.published:
            self.published = True
            actions.append(PublishTicket(self._epoch))
        return actions
