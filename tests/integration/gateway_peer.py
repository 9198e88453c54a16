"""A real p2pd with a real gateway over an invented backend, in a thread of its own, to be talked to."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from ravnest_p2p.core.errors import BlobError, JobError
from ravnest_p2p.core.types import BlobHash, JobId
from ravnest_p2p.daemon.gateway import Gateway
from ravnest_p2p.network.blobs import BlobStore
from ravnest_p2p.network.identity import Identity
from ravnest_p2p.network.p2pd import P2PDaemon
from ravnest_p2p.network.p2pd_config import P2PDConfig
from ravnest_p2p.network.records import CancelRecord, JobRecord, unseal

T = TypeVar("T")
SWARM = "gateway-test"


class Backend:
    """Takes jobs, and says of them what the test sets."""

    def __init__(self, blobs: BlobStore) -> None:
        self.blobs = blobs
        self.peer = ""
        self.addresses: list[str] = []
        self.others: list[dict[str, Any]] = []
        self.jobs_known: dict[str, dict[str, Any]] = {}
        self.requesters: dict[str, str] = {}
        self.pieces: dict[str, list[dict[str, Any]]] = {}
        self.timeline: dict[str, Any] = {"stages": [], "left_out": []}
        self.asked = threading.Event()
        self.hold: asyncio.Event | None = None

    async def hello(self) -> dict[str, Any]:
        return {
            "peer": self.peer,
            "version": "test",
            "swarm": SWARM,
            "addresses": self.addresses,
            "time_s": time.time(),
        }

    async def peers(self) -> list[dict[str, Any]]:
        return [{"peer": self.peer, "addresses": self.addresses}, *self.others]

    async def epoch(self) -> dict[str, Any]:
        return {
            "epoch": 7,
            "term": 1,
            "phase": "led",
            "leader": self.peer,
            "epoch_s": 60.0,
            "ends_in_s": 12.5,
            "plan": {
                "epoch": 7,
                "term": 1,
                "leader": self.peer,
                "hash": "ab" * 32,
                "jobs": [
                    {
                        "job": "cd" * 32,
                        "name": "[red]cnn[/red]",
                        "generation": "7.1.abcdefgh",
                        "clusters": [[{"peer": self.peer, "lo": 0, "hi": 6}]],
                        "standbys": [],
                        "updates_per_s": 2.5,
                        "reason": "",
                    }
                ],
            },
            "peers": [
                {
                    "peer": self.peer,
                    "epoch": 7,
                    "term": 1,
                    "obeys": [7, 1],
                    "agrees": True,
                    "refused": [
                        {"epoch": 7, "term": 0, "leader": "…thief", "why": "[b]a healthy cluster[/b]"}
                    ],
                }
            ],
        }

    async def jobs(self) -> list[dict[str, Any]]:
        return list(self.jobs_known.values())

    async def status(self, job: JobId) -> dict[str, Any]:
        self.asked.set()
        if self.hold is not None:
            await self.hold.wait()
        if job not in self.jobs_known:
            raise JobError(f"no job {job[:12]} is known here")
        return self.jobs_known[job]

    async def logs(self, job: JobId | None, after: int, limit: int) -> list[dict[str, Any]]:
        lines = [{"seq": n, "time_s": 1.0 * n, "level": "INFO", "text": f"line {n}"} for n in range(1, 6)]
        return [line for line in lines if line["seq"] > after][:limit]

    async def trace(self, job: JobId, last_s: float) -> dict[str, Any]:
        if job not in self.jobs_known:
            raise JobError(f"no job {job[:12]} is known here")
        return self.timeline

    async def submit(self, sealed: bytes) -> JobId:
        record = unseal(sealed, swarm=SWARM, now_s=time.time(), kind=JobRecord).record
        assert isinstance(record, JobRecord)
        if not self.blobs.has(record.manifest):
            raise BlobError("the manifest was not uploaded")
        self.requesters[record.job] = record.requester
        self.jobs_known[record.job] = {
            "job": record.job,
            "name": record.name,
            "phase": "waiting",
            "batches_done": 0,
            "total_batches": 10,
        }
        return record.job

    async def cancel(self, sealed: bytes) -> None:
        record = unseal(sealed, swarm=SWARM, now_s=time.time(), kind=CancelRecord).record
        assert isinstance(record, CancelRecord)
        if self.requesters.get(record.job) != record.requester:
            raise JobError("only its requester can cancel a job")
        self.jobs_known[record.job] |= {"phase": "cancelled", "reason": "its requester cancelled it"}

    async def result(self, job: JobId) -> dict[str, Any]:
        return {"phase": self.jobs_known[job]["phase"], "pieces": self.pieces[job]}

    async def fetch(self, blob: BlobHash) -> None:
        raise BlobError(f"blob {blob[:12]} is not here")


class GatewayPeer:
    """Context manager; `run` executes a coroutine in the peer's loop."""

    def __init__(self, folder: Path, **gateway: Any) -> None:
        self._folder = folder
        self._settings = gateway
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.backend: Backend
        self.address = ""

    def run(self, work: Awaitable[T], timeout_s: float = 20.0) -> T:
        async def as_coroutine() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(as_coroutine(), self._loop).result(timeout_s)

    def change(self, function: Callable[[], None]) -> None:
        """Run a function in the peer's loop."""

        async def call() -> None:
            function()

        self.run(call())

    def __enter__(self) -> GatewayPeer:
        self._folder.mkdir(parents=True, exist_ok=True)
        identity = Identity.load_or_create(self._folder / "peer.key", exclusive=False)
        self.peer_id = identity.peer_id
        self.blobs = BlobStore(self._folder / "blobs", 64 * 1024 * 1024)
        self.backend = Backend(self.blobs)
        config = P2PDConfig(
            identity_path=self._folder / "peer.key",
            runtime_dir=self._folder,
            log_path=self._folder / "p2pd.log",
        )
        self.daemon = P2PDaemon(config)
        self._thread.start()
        self.start()
        return self

    def start(self) -> None:
        """Bring the peer up, at the same address as before."""
        self.run(self._start())

    def stop(self) -> None:
        """Take p2pd down, as a crash would."""
        self.run(self.daemon.stop())

    async def _start(self) -> None:
        p2p = await self.daemon.start()
        self.gateway = Gateway(p2p, self.backend, self.blobs, **self._settings)
        await self.gateway.start()
        addresses = [str(address) for address in await p2p.get_visible_maddrs()]
        self.address = next(address for address in addresses if "/tcp/" in address)
        self.backend.peer, self.backend.addresses = self.peer_id, [self.address]

    def __exit__(self, *_: object) -> None:
        try:
            self.run(self.gateway.stop())
            self.stop()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10.0)
            self._loop.close()
