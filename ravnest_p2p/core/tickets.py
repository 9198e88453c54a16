"""Who may lead which term: the tickets of one epoch, sorted.

Problem: peers must agree on an order of leaders without talking to one another, although each has read the
directory at another moment and knows a few tickets more or fewer. Solution: the lowest ticket leads term 0,
the next term 1, and so on around. A peer *takes up* leading only by its exact rank, but *follows* a leader
whose rank fits the term for some view that differs from its own by at most `tolerance` tickets. Safety
never rests on this tolerance: two leaders of one term are kept apart by fencing and by the digest in the
generation. The tolerance only decides how soon views that differ come together; the next epoch brings them
together anyway.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from math import ceil

from .types import PeerId

TICKET_SPACE = 1 << 256
"""Tickets are SHA-256 hashes read as big-endian integers, so they lie in [0, TICKET_SPACE)."""


class TicketBook:
    """Tickets of one epoch as one peer knows them; keeps the lowest `limit` of them."""

    def __init__(self, limit: int = 1024, slack: float = 0.25) -> None:
        self._limit = limit
        self._slack = slack
        self._order: list[tuple[int, PeerId]] = []
        self._value: dict[PeerId, int] = {}

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._value

    def add(self, peer: PeerId, value: int) -> bool:
        """Note a ticket whose signature the caller has verified; a peer's first one counts.

        Returns:
            Whether the order has changed.
        """
        if peer in self._value or not 0 <= value < TICKET_SPACE:
            return False
        entry = (value, peer)
        if len(self._order) >= self._limit:
            if entry > self._order[-1]:
                return False
            del self._value[self._order.pop()[1]]
        insort(self._order, entry)
        self._value[peer] = value
        return True

    def rank(self, peer: PeerId) -> int | None:
        """Place of the peer's ticket, 0 for the lowest; None if it is not known here."""
        value = self._value.get(peer)
        return None if value is None else bisect_left(self._order, (value, peer))

    def leader(self, term: int) -> PeerId | None:
        """Who leads the term by this view, or None without tickets."""
        return self._order[term % len(self._order)][1] if self._order else None

    @property
    def tolerance(self) -> int:
        """Tickets by which another view may differ from this one, in either direction."""
        return max(2, ceil(self._slack * len(self._order)))

    @property
    def rotation(self) -> int:
        """Terms after one that it led in which nobody leads again, by any view within the tolerance."""
        return len(self._order) - self.tolerance

    def entitles(self, peer: PeerId, term: int) -> bool:
        """Whether some view within the tolerance makes this ticket holder the leader of the term."""
        rank = self.rank(peer)
        if rank is None:
            return False
        known, slack = len(self._order), self.tolerance
        return any(
            abs(rank - term % size) <= slack for size in range(max(1, known - slack), known + slack + 1)
        )
