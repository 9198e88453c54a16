"""What a round may take of this peer's line while training goes on beside it.

Problem: activations and gradients share a line with the rounds, and a stage that waits for one idles; a round
that has minutes to end would fill every queue on the way within a second. Solution: as long as training goes
on, the chunks of all segments together leave at a given share of the rate that was measured for the line, one
after the other. Once training waits for the mean, it takes what there is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from ravnest_p2p.core.planning.overlap import LINK_SHARE
from ravnest_p2p.network.p2pd_waits import bounded


class LinkShare:
    """All rounds of one stage take from the same.

    Args:
        bps: of the line, upwards; 0 where nobody measured it, and then rounds take what there is.
        now: seconds.
    """

    def __init__(self, bps: float, now: Callable[[], float] | None = None) -> None:
        self._bps = LINK_SHARE * bps
        self._now = now or asyncio.get_running_loop().time
        self._free_s = 0.0
        self._whole = asyncio.Event()
        self._whole.set()

    def bound(self) -> None:
        """Training goes on from here."""
        self._whole.clear()

    def free(self) -> None:
        """Training waits for the round."""
        self._whole.set()

    async def wait(self) -> None:
        """Until the line is due for something; ask for what, and say what it was, before awaiting again."""
        while not self._whole.is_set() and (wait_s := self._free_s - self._now()) > 0:
            with contextlib.suppress(asyncio.TimeoutError):
                await bounded(self._whole.wait(), wait_s)

    def spent(self, size_bytes: int) -> None:
        """So much leaves now."""
        if self._bps:
            self._free_s = max(self._free_s, self._now()) + 8 * size_bytes / self._bps
