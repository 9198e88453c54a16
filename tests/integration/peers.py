"""Real p2pd processes on loopback for a test, taken down with it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from hivemind.p2p import P2P

from ravnest_p2p.core.types import PeerId


@contextlib.asynccontextmanager
async def peers(count: int) -> AsyncIterator[list[P2P]]:
    """`count` p2pd, each knowing the first."""
    running: list[P2P] = []
    try:
        for _ in range(count):
            known = await running[0].get_visible_maddrs() if running else None
            running.append(
                await P2P.create(
                    host_maddrs=["/ip4/127.0.0.1/tcp/0"],
                    dht_mode="server",
                    initial_peers=known,
                    auto_nat=False,
                    nat_port_map=False,
                )
            )
        yield running
    finally:
        for p2p in running:
            await p2p.shutdown()


def id_of(p2p: P2P) -> PeerId:
    return PeerId(p2p.peer_id.to_base58())


def run(test: Callable[[], Awaitable[Any]], timeout_s: float = 60.0) -> None:
    """Runs an async test with a bound on its time."""

    async def bounded() -> None:
        await asyncio.wait_for(test(), timeout_s)

    asyncio.run(bounded())
