"""A peer that keeps the protocols' form and none of their rules."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, TypeVar

import msgpack

from ravnest_p2p.core.types import Fence, PeerId
from ravnest_p2p.network.directory import Directory
from ravnest_p2p.network.identity import Identity
from ravnest_p2p.network.p2pd import P2PDaemon, connect
from ravnest_p2p.network.p2pd_config import P2PDConfig
from ravnest_p2p.network.records import Record, Sealed, make_ticket, seal
from ravnest_p2p.network.records_keys import plan_key
from ravnest_p2p.network.rpc import Rpc
from ravnest_p2p.testing.local_swarm import PeerProcess, wait_until

T = TypeVar("T")
SWARM = "hostile"
EPOCH_S = 900.0
CALL_S = 10.0


class Attacker:
    """A p2pd with its own identity, attached to the swarm, and what peers talk with. A context manager."""

    def __init__(self, folder: Path, bootstrap: str) -> None:
        self._folder = folder
        self._bootstrap = bootstrap
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def run(self, work: Awaitable[T], timeout_s: float = 30.0) -> T:
        async def bounded() -> T:
            return await asyncio.wait_for(work, timeout_s)

        return asyncio.run_coroutine_threadsafe(bounded(), self._loop).result(timeout_s + 1)

    def __enter__(self) -> Attacker:
        self._folder.mkdir(parents=True, exist_ok=True)
        key = self._folder / "attacker.key"
        self.identity = Identity.load_or_create(key, exclusive=False)
        self._daemon = P2PDaemon(
            P2PDConfig(identity_path=key, runtime_dir=self._folder, log_path=self._folder / "p2pd.log")
        )
        self._thread.start()
        self.run(self._start())
        return self

    async def _start(self) -> None:
        self.p2p = await self._daemon.start()
        await connect(self.p2p, self._bootstrap)
        self.rpc = Rpc(self.p2p)
        self.directory = await Directory.start(
            self.p2p, swarm=SWARM, identity=self.identity, initial_peers=[self._bootstrap], client_mode=True
        )

    def __exit__(self, *_: object) -> None:
        self.run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10.0)
        self._loop.close()

    async def _stop(self) -> None:
        await self.directory.stop()
        await self._daemon.stop()

    def meet(self, peer: PeerProcess) -> None:
        self.run(connect(self.p2p, peer.address))

    def call(self, peer: PeerProcess, name: str, body: dict[str, Any]) -> dict[str, Any]:
        return self.run(self.rpc.call(PeerId(peer.peer), name, body, CALL_S))

    def call_raw(self, peer: PeerProcess, name: str, data: bytes) -> str:
        """The name of the error that the bytes are answered with."""
        reply = self.run(self.rpc._unary(PeerId(peer.peer), name, data, CALL_S))
        assert reply[:1] == b"\x01", "it was taken for a call"
        return str(msgpack.unpackb(reply[1:])["type"])

    def sealed(self, record: Record, ttl_s: float = 600.0) -> bytes:
        return seal(self.identity, record, swarm=SWARM, ttl_s=ttl_s, now_s=self.directory.now_s())

    def let_epoch_last(self, needed_s: float) -> None:
        """Return once the epoch goes on for so long: one that is about to end is let end first."""

        def lasts() -> bool:
            return EPOCH_S - self.directory.now_s() % EPOCH_S >= needed_s

        wait_until(lasts, needed_s + CALL_S, "the next epoch begins")

    def show_ticket(self) -> None:
        """A genuine ticket of this epoch, of an identity that nobody has heard of before."""
        epoch = int(self.directory.now_s() // EPOCH_S)
        ticket = make_ticket(self.identity, swarm=SWARM, epoch=epoch, previous_hash="")
        self.run(self.directory.publish(ticket, 600.0))

    def highest_of_others(self) -> Fence:
        """The highest fence of a plan of this epoch by another author; below all if there is none."""
        found = (sealed.record.plan for sealed in self.plans())  # type: ignore[union-attr]
        others = (plan.fence for plan in found if plan.leader != self.identity.peer_id)
        return max(others, default=Fence(0, 0))

    def plans(self) -> list[Sealed]:
        """Published plans of this epoch, the oldest first."""
        epoch = int(self.directory.now_s() // EPOCH_S)
        found = self.run(self.directory.fetch(plan_key(SWARM, epoch)))
        return sorted(found, key=lambda sealed: sealed.record.plan.fence)  # type: ignore[union-attr]
