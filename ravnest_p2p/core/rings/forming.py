"""Who takes part in a round from now on, and what each of them holds.

Problem: after a death all that live have to go on alike, though each notices it at another time, and others
may die meanwhile. Solution: a formation is named by the set of the dead, as bits. The set only grows, and
whoever hears of a larger one takes it over, so all that live come to the same one without an election. Each
tells all others what it holds in it, and begins once it has heard from all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from ravnest_p2p.core.errors import ChunkMismatchError
from ravnest_p2p.core.rings.messages import Formed


class Forming:
    """One member's view of the formation that counts now.

    Args:
        rank: ours, of so many members.
        chunks: of the segment.
    Attributes:
        number: the set of the dead.
        live: ranks that are not in it, ascending.
    """

    def __init__(self, rank: int, members: int, chunks: int) -> None:
        self.number = 0
        self.live: Sequence[int] = range(members)
        self._rank = rank
        self._members = members
        self._chunks = chunks
        self._told: dict[int, Formed] = {}
        self._untold: set[int] = set()
        self._finished: set[int] = set()
        self._news: list[tuple[int, Formed]] = []

    @property
    def waiting(self) -> bool:
        """Others have not yet said what they hold."""
        return bool(self._untold)

    def dead(self, rank: int) -> bool:
        return bool(self.number >> rank & 1)

    def lose(self, dead: int) -> bool:
        """Some are dead, as bits; whether any of them was not known to be."""
        if not dead & ~self.number:
            return False
        self.number |= dead
        self.live = [rank for rank in range(self._members) if not self.dead(rank)]
        self._untold = set(self.live) - self._finished - {self._rank}
        self._told.clear()
        return True

    def tell(self, held: Collection[int], kept: Collection[int]) -> None:
        """What we hold in this formation becomes news to all others that are not finished."""
        told = Formed(self.number, frozenset(held), frozenset(kept))
        self._news = [(rank, told) for rank in self.live if rank != self._rank and rank not in self._finished]

    def news(self) -> list[tuple[int, Formed]]:
        """To whom to say what we hold; each is handed out once."""
        news, self._news = self._news, []
        return news

    def check(self, sender: int, told: Formed) -> None:
        """Refuse what no member can say.

        Raises:
            ChunkMismatchError: it did.
        """
        nobody_dead = not told.formation
        if nobody_dead or told.formation >> self._members or told.formation >> sender & 1:
            raise ChunkMismatchError(f"member {sender} speaks of formation {told.formation:#b}")
        if any(not 0 <= chunk < self._chunks for chunk in told.held) or not told.kept <= told.held:
            raise ChunkMismatchError(f"member {sender} holds chunks that are none of {self._chunks}")

    def hear(self, sender: int, told: Formed) -> bool:
        """What a member said, after `lose`; whether it is of this formation, and we are.

        Raises:
            ChunkMismatchError: it has said so already.
        """
        if told.formation != self.number:
            return False
        if sender in self._told:
            raise ChunkMismatchError(f"member {sender} says twice what it holds")
        if self.dead(sender) or self.dead(self._rank):
            return False
        self._told[sender] = told
        self._untold.discard(sender)
        return True

    def finish(self, rank: int) -> bool:
        """A member holds all, now and in whatever comes; whether that was waited for."""
        waited = rank in self._untold
        self._finished.add(rank)
        self._untold.discard(rank)
        return waited

    def held(self, own: Collection[int], kept: Collection[int]) -> tuple[Counter[int], dict[int, int]]:
        """How many hold each chunk, with what we hold and keep; and of those who keep it, the first rank."""
        holders: Counter[int] = Counter(own)
        keepers = {chunk: [self._rank] for chunk in kept}
        for _ in self._finished.intersection(self.live) - self._told.keys():
            holders.update(range(self._chunks))
        for rank, told in self._told.items():
            holders.update(told.held)
            for chunk in told.kept:
                keepers.setdefault(chunk, []).append(rank)
        return holders, {chunk: min(ranks) for chunk, ranks in keepers.items()}
