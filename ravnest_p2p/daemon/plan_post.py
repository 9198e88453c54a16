"""Plans from hand to hand, ahead of the directory.

Problem: a plan that everybody finds in the directory by itself takes seconds to be obeyed by all, seconds in
which some obey another. Solution: its leader pushes it to its members and some others, and whoever adopts it
hands it on to a few at random, so that it is everywhere after a few hops. Nobody trusts the hand it comes
from: it travels as its leader sealed it, and each peer judges it as if it came from the directory.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Iterable

from ravnest_p2p.core.types import PeerId
from ravnest_p2p.daemon.peer_messages import PLAN, PlanPushed, plain
from ravnest_p2p.network.rpc import Rpc

PUSHED_TO = 64
HANDED_ON_TO = 3
TIMEOUT_S = 3.0


class PlanPost:
    """One peer's part in spreading plans."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc
        self._under_way: set[asyncio.Task[None]] = set()

    async def push(self, sealed: bytes, peers: Iterable[PeerId]) -> None:
        """Hand an own plan to the first of these peers; returns when they have it or do not answer."""
        await self._send(sealed, list(dict.fromkeys(peers))[:PUSHED_TO])

    def hand_on(self, plans: Iterable[bytes], peers: Collection[PeerId]) -> None:
        """Hand an adopted plan, or two that prove a liar, to a few of these peers, without waiting for it."""
        chosen = random.sample(sorted(peers), min(HANDED_ON_TO, len(peers)))
        for sealed in plans:
            task = asyncio.create_task(self._send(sealed, chosen))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def close(self) -> None:
        """Stop what is under way."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _send(self, sealed: bytes, peers: Collection[PeerId]) -> None:
        body = plain(PlanPushed(sealed=sealed))
        calls = (self._rpc.call(peer, PLAN, body, TIMEOUT_S) for peer in peers)
        await asyncio.gather(*calls, return_exceptions=True)
