"""Everything of a peer that lives exactly as long as one p2pd process.

p2pd may die and be restarted under a running ravnestd; handlers, directory and calls are then made anew.
They are kept together here, so that nothing stale survives: `open` makes them, `close` ends them, whoever
holds a session holds a whole one.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from hivemind.p2p import P2P

from ravnest_p2p.core.types import PeerId
from ravnest_p2p.daemon.files import JobFiles
from ravnest_p2p.network.blob_exchange import BlobExchange
from ravnest_p2p.network.blobs import BlobStore
from ravnest_p2p.network.directory import Directory
from ravnest_p2p.network.identity import Identity
from ravnest_p2p.network.probes import Prober
from ravnest_p2p.network.rpc import Rpc


@dataclass(frozen=True, slots=True)
class Session:
    """One attachment to p2pd and what stands on it."""

    p2p: P2P
    rpc: Rpc
    directory: Directory
    exchange: BlobExchange
    prober: Prober
    files: JobFiles

    @classmethod
    async def open(
        cls,
        p2p: P2P,
        *,
        identity: Identity,
        swarm: str,
        bootstrap: tuple[str, ...],
        store: BlobStore,
        client_mode: bool,
        previous: Directory | None,
    ) -> Session:
        """Stand on a fresh p2pd: calls, directory (with the records of the one before), blobs and probes."""
        rpc = Rpc(p2p)
        directory = await Directory.start(
            p2p,
            swarm=swarm,
            identity=identity,
            initial_peers=bootstrap,
            client_mode=client_mode,
            previous=previous,
        )
        exchange = BlobExchange(p2p, store)
        await exchange.start()
        prober = Prober(p2p, rpc)
        await prober.start()
        own: PeerId = identity.peer_id
        return cls(p2p, rpc, directory, exchange, prober, JobFiles(own, store, exchange, directory, swarm))

    async def close(self) -> None:
        """End what stands on p2pd; p2pd itself may be gone already."""
        await asyncio.gather(
            self.prober.close(),
            self.exchange.close(),
            self.directory.stop(),
            self.rpc.close(),
            return_exceptions=True,
        )
