"""Who gets a plan from whom, and that nobody waits for peers that do not answer."""

from __future__ import annotations

import asyncio
from typing import Any

from ravnest_p2p.core.errors import PeerUnreachableError
from ravnest_p2p.core.types import PeerId
from ravnest_p2p.daemon.plan_post import HANDED_ON_TO, PUSHED_TO, PlanPost

PEERS = [PeerId(f"p{number:03}") for number in range(200)]


class Rpc:
    """Notes who is called; peers of `silent` never answer, those of `gone` cannot be reached."""

    def __init__(self, silent: str = "", gone: str = "") -> None:
        self.called: list[tuple[str, str, bytes]] = []
        self.all_called = asyncio.Event()
        self._silent, self._gone = silent.split(), gone.split()

    async def call(self, peer: PeerId, name: str, body: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        self.called.append((peer, name, body["sealed"]))
        if len(self.called) > HANDED_ON_TO:
            self.all_called.set()
        if peer in self._gone:
            raise PeerUnreachableError(peer)
        if peer in self._silent:
            await asyncio.sleep(3600)
        return {}


def post(rpc: Rpc) -> PlanPost:
    fake: Any = rpc
    return PlanPost(fake)


def test_a_leader_pushes_to_the_first_few_each_once() -> None:
    rpc = Rpc(gone="p003")
    asyncio.run(post(rpc).push(b"plan", [PEERS[3], PEERS[3], *PEERS]))
    told = [peer for peer, _, _ in rpc.called]
    assert told == [PEERS[3], *PEERS[:3], *PEERS[4:PUSHED_TO]]
    assert {(name, sealed) for _, name, sealed in rpc.called} == {("plan", b"plan")}


def test_who_adopts_a_plan_hands_it_on_to_a_few_and_does_not_wait() -> None:
    rpc = Rpc(silent="p000")

    async def run() -> None:
        sender, before = post(rpc), asyncio.all_tasks()
        sender.hand_on([b"plan"], PEERS[:1])
        sender.hand_on([b"plan"], PEERS)
        sender.hand_on([b"plan"], [])
        await rpc.all_called.wait()
        assert asyncio.all_tasks() > before
        await sender.close()
        assert asyncio.all_tasks() == before

    asyncio.run(asyncio.wait_for(run(), 5.0))
    assert len(rpc.called) == 1 + HANDED_ON_TO
    assert len({peer for peer, _, _ in rpc.called[1:]}) == HANDED_ON_TO
