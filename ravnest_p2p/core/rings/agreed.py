"""A round that is over once all members have told each other the digest of what they ended with.

Problem: members that end with different results must all find that out in this round, and whoever dies at its
end must neither keep others waiting nor have them end differently. Solution: a member whose round is over
knows that all hold all (`round`). It tells the others its result (`agreement`) as its last message of this
round on each link, and waits for theirs. Whose result has come is not waited for any more, nor is anyone
dead; so a member may leave when it has them all and has told its own.

    round ──over: all hold all──▶ tell the own result ──all that live have told──▶ outcome

Somebody may die who was to hand on that all hold all, while others are over already and may have left. So a
result stands for what its sender would say in any later formation: that it holds all. Those who still form
anew wait for no more of it.

Whoever dies after it has told some its result changes nothing for those who did not get it: they compare
among themselves. Members that do not lie and whose memory does not fail all end alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple

from ravnest_p2p.core.errors import ChunkMismatchError
from ravnest_p2p.core.rings.agreement import DIGEST_BYTES, Digests, Dispute, dispute, rows
from ravnest_p2p.core.rings.delivery import deliver
from ravnest_p2p.core.rings.messages import Formed, Outcome, Send, T
from ravnest_p2p.core.rings.round import SegmentRound
from ravnest_p2p.core.rings.ways import Ways


class Showed(NamedTuple):
    """What one member tells of a round beside its result; a stranger's is whatever it likes.

    Attributes:
        spread: sum of squares of mean minus own part.
        norm: sum of squares of the mean.
        round_s: since it began the round.
        update_s: that its cluster takes for a local update.
    """

    spread: float = 0.0
    norm: float = 0.0
    round_s: float = 0.0
    update_s: float = 0.0


NOTHING = Showed()


@dataclass(frozen=True, slots=True)
class Result:
    """What a member ended with, and what the round showed it."""

    digests: Digests
    showed: Showed = NOTHING


class AgreedRound(Generic[T]):
    """Feed it what arrives and who dies; ask it what to send, and at last for the outcome.

    Args:
        round_: its rank, arithmetic and so on; nobody else feeds it.
        ways: of all members.
        digests, showed: of the result, in so many rows; asked for once, when all is held.
    """

    def __init__(
        self,
        round_: SegmentRound[T],
        ways: Ways,
        digests: Callable[[int], Digests],
        showed: Callable[[], Showed] = Showed,
    ) -> None:
        self._round = round_
        self._ways = ways
        self._digests = digests
        self._own_showed = showed
        self._results: dict[int, Digests] = {}
        self._showed: dict[int, Showed] = {}
        self._news: dict[int, Formed] = {}
        self._untold: set[int] = set()
        self._look()

    @property
    def outcome(self) -> Outcome | None:
        """How it ended, once all that live have told their results."""
        outcome = self._round.outcome
        return outcome if outcome is Outcome.CUT_OUT or (self.held and not self.awaited) else None

    @property
    def live(self) -> Sequence[int]:
        """Ranks that are not known to be dead, ascending."""
        return self._round.live

    @property
    def held(self) -> bool:
        """All members hold all: only results are waited for."""
        return self._round.rank in self._results

    @property
    def awaited(self) -> list[int]:
        """Who lives and has not told its result."""
        return [rank for rank in self.live if rank not in self._results]

    @property
    def dispute(self) -> Dispute | None:
        """Whether those that live differ; None too where it has not ended."""
        if self.outcome in (None, Outcome.CUT_OUT):
            return None
        return dispute(
            {rank: self._results[rank] for rank in self.live},
            None if self._round.formation else self._ways,
        )

    @property
    def showed(self) -> dict[int, Showed]:
        """What the round showed those that live, by rank; the same at each once it has ended."""
        return {rank: self._showed[rank] for rank in self.live if rank in self._showed}

    @property
    def untold(self) -> list[int]:
        """Who lives and is not told our result."""
        return [rank for rank in self.live if rank in self._untold]

    def awaits(self, rank: int) -> bool:
        """Whether anything of this round is still to come from that member."""
        return rank in self.live and rank not in self._results

    def died(self, rank: int) -> None:
        """A member is gone, or is not waited for any longer."""
        self._round.died(rank)
        self._look()

    def arrived(self, sender: int, message: Formed | Send[T] | Result) -> None:
        """A member's message.

        Raises:
            ChunkMismatchError, NonFiniteError: it is not due, or none.
        """
        if isinstance(message, Result):
            self._told(sender, message)
        elif sender in self._results:
            raise ChunkMismatchError(f"member {sender} goes on after it was over")
        elif isinstance(message, Formed):
            self._round.formed(sender, message)
        else:
            deliver(self._round, sender, message)
        self._look()

    def next_for(self, rank: int) -> Formed | Send[T] | Result | None:
        """What to tell that member now; None where nothing is due."""
        if not self.held:
            return self._news.pop(rank, None) or self._round.next_for(rank)
        if rank not in self._untold:
            return None
        receipts = self._round.next_for(rank)
        if receipts is not None:
            return receipts
        self._untold.discard(rank)
        own = self._round.rank
        return Result(self._results[own], self._showed[own])

    def _told(self, sender: int, result: Result) -> None:
        digests = result.digests
        if sender in self._results:
            raise ChunkMismatchError(f"member {sender} tells its result twice")
        if len(digests) != rows(self._ways) or any(len(row) != DIGEST_BYTES for row in digests):
            raise ChunkMismatchError(f"member {sender} tells a result of another form than ours")
        self._results[sender], self._showed[sender] = digests, result.showed
        self._news.pop(sender, None)
        self._round.finished(sender)

    def _look(self) -> None:
        self._news |= dict(self._round.news())
        if self._round.outcome in (Outcome.MEAN, Outcome.UNCHANGED) and not self.held:
            self._results[self._round.rank] = self._own_result()
            self._showed[self._round.rank] = self._own_showed()
            self._untold = {rank for rank in self.live if rank != self._round.rank}

    def _own_result(self) -> Digests:
        if self._round.outcome is Outcome.UNCHANGED:
            # Each keeps what it had, which nobody has to share.
            return (bytes(DIGEST_BYTES),) * rows(self._ways)
        return self._digests(rows(self._ways))
