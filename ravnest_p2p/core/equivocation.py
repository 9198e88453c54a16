"""Leaders that published two plans for one fence, proven by their own signatures.

Problem: a liar shows each half of the swarm another plan, and both are sound. Fencing keeps their clusters
apart, but it can do so again in each term. Solution: whoever sees both plans needs no other proof, since an
honest leader has its plan on disk before it publishes, and never makes a second one for the same fence. Such
an author is not obeyed again, and its two plans are handed on.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from .types import Fence, PeerId

MAX_SAID = 4096
MAX_PROVEN = 1024


class Proof(NamedTuple):
    """Two plans of one author for one fence."""

    fence: Fence
    plan_hashes: tuple[str, str]


class Equivocators:
    """What each author said, of the newest few plans, and who contradicted itself."""

    def __init__(self) -> None:
        self._said: OrderedDict[tuple[Fence, PeerId], str] = OrderedDict()
        self._proven: OrderedDict[PeerId, Proof] = OrderedDict()

    def hear(self, fence: Fence, author: PeerId, plan_hash: str) -> bool:
        """Note a plan with a verified signature.

        Returns:
            Whether this is what first proves that its author equivocates.
        """
        other = self._said.setdefault((fence, author), plan_hash)
        while len(self._said) > MAX_SAID:
            self._said.popitem(last=False)
        if other == plan_hash or author in self._proven:
            return False
        self._proven[author] = Proof(fence, (other, plan_hash))
        while len(self._proven) > MAX_PROVEN:
            self._proven.popitem(last=False)
        return True

    def proof(self, author: PeerId) -> Proof | None:
        """That the author equivocates, as far as we know."""
        return self._proven.get(author)
