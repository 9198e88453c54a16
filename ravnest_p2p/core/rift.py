"""A plan that is doubted here may be obeyed elsewhere.

Problem: peers that judge one plan differently obey different plans from then on, and each side is content.
Solution: a doubt that lasts a term asks for a plan above the doubted one, once, under which all unite again.
"""

from __future__ import annotations

from math import inf

from .ballot import fence_text
from .types import Fence


class Rift:
    """The doubted plans above the one obeyed.

    Args:
        patience_s: how long the doubt lasts before a new plan is called for.

    Attributes:
        fence: the highest of the doubted plans; None where there is none.
        lasts_s: time from which a new plan is called for.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self.fence: Fence | None = None
        self.lasts_s = inf

    def note(self, fence: Fence, now_s: float) -> None:
        """A plan with this fence is doubted."""
        if self.fence is None:
            self.lasts_s = now_s + self._patience_s
        self.fence = fence if self.fence is None else max(fence, self.fence)

    def why(self, now_s: float) -> str:
        """Why a new plan is called for now; empty if none is."""
        if self.fence is None or now_s < self.lasts_s:
            return ""
        return f"{fence_text(self.fence)}, which is not obeyed here, may be obeyed elsewhere"

    def close(self) -> None:
        """A plan above all that were doubted is obeyed, or called for."""
        self.fence = None
        self.lasts_s = inf
