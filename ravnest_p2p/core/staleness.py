"""Why the plan that is obeyed has to give way to a new one.

| what is known                                               | a new plan is called for |
|-------------------------------------------------------------|--------------------------|
| this peer says that it is stale: a generation broke, …      | at once                  |
| there is another plan of its fence                          | at once                  |
| a plan above it is doubted here, and may be obeyed elsewhere | once that lasts a term  |

Peers that judge one plan differently obey different plans from then on, and each side is content: only a
plan above the doubted one, called for once, unites them again.
"""

from __future__ import annotations

from math import inf

from .ballot import fence_text
from .types import Fence


class Staleness:
    """Of the plan obeyed.

    Args:
        patience_s: how long a doubt lasts before a new plan is called for.

    Attributes:
        called_s: when a new plan is called for if nothing else is heard; inf where nothing speaks for one.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._doubted: Fence | None = None
        self.settle()

    def settle(self) -> None:
        """A new plan is obeyed."""
        self._said = ""
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """The epoch's plans are above all others; what this peer says still holds."""
        self._parted = ""
        self._forget_doubted()

    def say(self, reason: str) -> bool:
        """This peer's own reason, none if empty; returns whether it is another than before."""
        if reason == self._said:
            return False
        self._said = reason
        return True

    def note_second(self, fence: Fence) -> bool:
        """There is another plan of the obeyed fence; returns whether that is news."""
        if self._parted:
            return False
        self._parted = f"two plans for {fence_text(fence)}"
        return True

    def note_doubted(self, fence: Fence, now_s: float) -> None:
        """A plan with this fence is doubted here."""
        if self._doubted is None:
            self._lasts_s = now_s + self._patience_s
        self._doubted = fence if self._doubted is None else max(fence, self._doubted)

    @property
    def called_s(self) -> float:
        return -inf if self._parted or self._said else self._lasts_s

    def why(self, now_s: float) -> str:
        """Why a new plan is called for now; empty if none is."""
        return self._parted or self._said or self._doubt(now_s)

    def rise(self, term: int, now_s: float) -> int:
        """The first term from this one on that is above all doubted plans, which are done with by that."""
        if self._doubted is not None:
            term = max(term, self._doubted.term + 1)
            self._parted = self._parted or self._doubt(now_s)
            self._forget_doubted()
        return term

    def _doubt(self, now_s: float) -> str:
        if self._doubted is None or now_s < self._lasts_s:
            return ""
        return f"{fence_text(self._doubted)}, which is not obeyed here, may be obeyed elsewhere"

    def _forget_doubted(self) -> None:
        self._doubted = None
        self._lasts_s = inf
