"""A search of the directory that nobody waits for any more ends in good order, and leaves no task behind."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

from hivemind.dht.routing import DHTID
from hivemind.dht.traverse import traverse_dht

from ravnest_p2p.network.directory import Directory

OWN, OTHER = DHTID(1), DHTID(2)


class Node:
    """hivemind's own search among two peers, of which the other answers when it may."""

    node_id = OWN

    def __init__(self) -> None:
        self.asked, self.may_answer, self.over = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def find_nearest_nodes(self, queries: list[DHTID], **_: object) -> dict[DHTID, Any]:
        async def neighbours(peer: DHTID, wanted: list[DHTID]) -> dict[DHTID, Any]:
            self.asked.set()
            await self.may_answer.wait()
            return dict.fromkeys(wanted, ((), False))

        try:
            nearest, _visited = await traverse_dht(queries, [OTHER], 8, 1, 1, neighbours)
        finally:
            self.over.set()
        return nearest


async def collected() -> None:
    """All that is left behind is gone, once tasks that were cancelled have heard it."""
    for _ in range(5):
        await asyncio.sleep(0)
    gc.collect()


def test_a_search_without_a_caller_leaves_no_task_behind() -> None:
    told: list[str] = []

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, said: told.append(said["message"]))
        node: Any = Node()
        directory = Directory.__new__(Directory)
        directory._node, directory._searches = node, set()
        caller = asyncio.create_task(directory._refresh())
        await node.asked.wait()
        caller.cancel()
        await asyncio.wait((caller,))
        assert caller.cancelled()
        # Its error would keep alive what it went through.
        del caller
        await collected()
        node.may_answer.set()
        await node.over.wait()
        await collected()
        assert not directory._searches

    asyncio.run(scenario())
    assert told == []
