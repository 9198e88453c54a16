"""Whose turn it is to lead, and when it is over: by tickets, by conduct, by membership.

Problem: whoever holds the lowest tickets leads the first terms, and each of them that does nothing useful
costs everybody a term. Solution: nobody is given more time than it can use.

| a leader whose plan            | has                                                         |
|--------------------------------|-------------------------------------------------------------|
| would not be obeyed            | none: the term passes to the next whose plan may be obeyed  |
| was refused, who is gone       | the shortest term, which limits the rate of plans           |
| is waited for                  | the term                                                    |

A term that is reached by passing others over does not begin before any peer may be in it
(`timeliness.may_begin_s`), so terms never run ahead of the time.
"""

from __future__ import annotations

from collections.abc import Collection

from .ballot import ElectionConfig, Turn
from .conduct import Conduct
from .tickets import TicketBook
from .types import Fence, PeerId
from .wording import peer_text


class Succession:
    """The turns of one epoch, as one peer knows them.

    Args:
        tickets: of the epoch.
        conduct: of the leaders.
        gone: who is not waited for; the caller keeps it up to date.
    """

    def __init__(
        self,
        peer: PeerId,
        config: ElectionConfig,
        tickets: TicketBook,
        conduct: Conduct,
        gone: Collection[PeerId],
    ) -> None:
        self._peer = peer
        self._config = config
        self._tickets = tickets
        self._conduct = conduct
        self._gone = gone
        self._refused: set[tuple[Fence, PeerId]] = set()

    def refuse(self, fence: Fence, leader: PeerId) -> bool:
        """The leader's plan was refused, or it could make none; returns whether this is news."""
        if (fence, leader) in self._refused:
            return False
        self._refused.add((fence, leader))
        return True

    def was_refused(self, fence: Fence, leader: PeerId) -> bool:
        return (fence, leader) in self._refused

    def next_turn(self, term: int) -> int:
        """The first term from this one on for which somebody's plan may be obeyed.

        The term itself where no ticket holder's may be: terms do not run out in a moment.
        """
        tickets = self._tickets
        for later in range(term, min(term + len(tickets), self._config.max_terms)):
            leader = tickets.leader(later)
            if leader is not None and not self._conduct.against(leader, later, tickets.rotation):
                return later
        return term

    def over(self, fence: Fence, age_s: float) -> tuple[Turn, str] | None:
        """How a term without a plan ends now, and why; None if it goes on.

        Args:
            age_s: of the term; negative before it begins.
        """
        leader = self._tickets.leader(fence.term)
        if leader is not None:
            passed_over = self._conduct.why_not_wait(leader, fence.term, self._tickets.rotation)
            if self.next_turn(fence.term) != fence.term:
                return Turn.REFUSED, passed_over
            if age_s < self._config.min_term_s:
                return None
            if self.was_refused(fence, leader):
                return Turn.REFUSED, f"the plan of {peer_text(leader)} was refused"
            if passed_over:
                return Turn.REFUSED, passed_over
            if leader in self._gone and leader != self._peer:
                return Turn.SILENT, f"{peer_text(leader)} is gone"
        if age_s < self._config.term_s:
            return None
        return Turn.SILENT, "" if leader is None else f"{peer_text(leader)} published no plan"
