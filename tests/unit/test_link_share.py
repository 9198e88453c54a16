"""What rounds may take of a line."""

from __future__ import annotations

import asyncio
import time

from ravnest_p2p.core.planning.overlap import LINK_SHARE
from ravnest_p2p.daemon.worker.link_share import LinkShare

CHUNK_BYTES = 5_000
BPS = 8e6


async def send(share: LinkShare, chunks: int) -> None:
    for _ in range(chunks):
        await share.wait()
        share.spent(CHUNK_BYTES)


def seconds(share_of_bps: float, *chunks: int, bound: bool = True) -> float:
    async def run() -> float:
        share = LinkShare(share_of_bps)
        if bound:
            share.bound()
        begun_s = time.monotonic()
        await asyncio.gather(*(send(share, count) for count in chunks))
        return time.monotonic() - begun_s

    return asyncio.run(run())


def test_all_links_together_keep_to_the_share() -> None:
    chunk_s = CHUNK_BYTES * 8 / (LINK_SHARE * BPS)
    assert seconds(BPS, 5, 3, 3) >= 10 * chunk_s


def test_nothing_waits_where_nobody_measured_or_training_stands() -> None:
    assert seconds(0.0, 1000) < 0.5
    assert seconds(1.0, 1000, bound=False) < 0.5


def test_who_waits_goes_on_when_training_begins_to_wait() -> None:
    async def run() -> None:
        share = LinkShare(1.0)
        share.bound()
        sending = asyncio.create_task(send(share, 3))
        await asyncio.sleep(0)
        share.free()
        await asyncio.wait_for(sending, 5.0)

    asyncio.run(run())
