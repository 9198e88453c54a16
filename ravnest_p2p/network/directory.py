"""The swarm's directory: signed records in a Kademlia DHT, on hivemind's `DHTNode`.

Problem: every peer stores and answers for every other, so whatever is read may be forged, moved, outdated
or endless; a peer may come up before anybody else, and p2pd may be restarted under it. Solution:
`RecordValidator` sees every record on its way in, both those that others ask us to store and those that
they answer with, and lets through only sealed records under their own key. `Directory` writes and reads
them in the running event loop, has no cache that could hide new entries, starts alone, and keeps trying
its bootstrap addresses.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.p2p import P2P
from hivemind.p2p.p2p_daemon_bindings.datastructures import PeerID
from hivemind.p2p.p2p_daemon_bindings.utils import ControlFailure, P2PDaemonError, P2PHandlerError
from hivemind.proto import dht_pb2
from hivemind.utils.timed_storage import get_dht_time

from ravnest_p2p.core.errors import LocalDaemonError, PeerUnreachableError, RecordError, RemoteFault
from ravnest_p2p.core.types import PeerId
from ravnest_p2p.network.addresses import peer_of
from ravnest_p2p.network.directory_storage import BoundedSerializer, BoundedStorage, harden
from ravnest_p2p.network.directory_validator import MAX_STORE_S, RecordValidator
from ravnest_p2p.network.identity import Identity
from ravnest_p2p.network.p2pd import connect
from ravnest_p2p.network.p2pd_waits import bounded
from ravnest_p2p.network.records import (
    MAX_SKEW_S,
    Record,
    Sealed,
    expected_key,
    expected_subkey,
    seal,
    unseal,
)
from ravnest_p2p.network.records_keys import MAX_SHARDS, PEERS_PER_SHARD, peers_key, shards_for

logger = logging.getLogger(__name__)

REPLICAS = 5
_FULL_SHARD = PEERS_PER_SHARD // 4
"""A last shard with fewer records than this has no successor: the first split leaves about half in each."""
_RPC_TIMEOUT_S = 3.0
_OPERATION_TIMEOUT_S = 12.0
_REFRESH_S = 60.0
_RETRY_FIRST_S = 0.5
_RETRY_LAST_S = 30.0
_TRANSPORT_ERRORS = (OSError, EOFError, asyncio.TimeoutError, P2PDaemonError, P2PHandlerError, ControlFailure)


class Directory:
    """One peer's view of the directory. Make one with `start`."""

    def __init__(self, p2p: P2P, node: DHTNode, validator: RecordValidator, identity: Identity) -> None:
        self._p2p = p2p
        self._node = node
        self._validator = validator
        self._identity = identity
        self._storage: BoundedStorage = node.protocol.storage
        self._bootstrap: dict[str, None] = {}
        self._keeper: asyncio.Task[None] | None = None
        self._searches: set[asyncio.Task[Any]] = set()
        self._last_expiry: dict[tuple[str, str], float] = {}
        self._shards = 1
        self.clock_problem = ""

    @classmethod
    async def start(
        cls,
        p2p: P2P,
        *,
        swarm: str,
        identity: Identity,
        initial_peers: Sequence[str] = (),
        client_mode: bool = False,
        previous: Directory | None = None,
    ) -> Directory:
        """A running directory; joining the initial peers goes on in the background.

        Args:
            initial_peers: full addresses; they are tried for ever, so none needs to be up now.
            client_mode: keep nothing for others (peers that cannot be dialled).
            previous: the directory before a restart of p2pd, whose records and counters are taken over.
        Raises:
            LocalDaemonError: p2pd does not serve.
        """
        validator = RecordValidator(swarm, get_dht_time, None if previous is None else previous.refusals)
        try:
            node = await bounded(
                DHTNode.create(
                    p2p=p2p,
                    node_id=DHTID.generate(source=identity.peer_id),
                    num_replicas=REPLICAS,
                    wait_timeout=_RPC_TIMEOUT_S,
                    cache_locally=False,
                    cache_nearest=0,
                    cache_on_store=False,
                    cache_refresh_before_expiry=0,
                    reuse_get_requests=False,
                    client_mode=client_mode,
                    record_validator=validator,
                ),
                _OPERATION_TIMEOUT_S,
            )
        except _TRANSPORT_ERRORS as error:
            raise LocalDaemonError(f"the directory cannot be started on p2pd: {error!r}") from error
        harden(node, None if previous is None else previous._storage)
        directory = cls(p2p, node, validator, identity)
        directory._bootstrap = dict.fromkeys(initial_peers)
        if previous is not None:
            directory._last_expiry = previous._last_expiry
            directory._shards = previous._shards
        directory._keeper = asyncio.create_task(directory._keep_joined())
        return directory

    @property
    def swarm(self) -> str:
        """Name of the swarm."""
        return self._validator.swarm

    @property
    def refusals(self) -> Counter[str]:
        """How many records were refused, by the name of the error."""
        return self._validator.refusals

    @property
    def neighbours(self) -> int:
        """DHT peers in the routing table; 0 means alone."""
        return len(self._node.protocol.routing_table.peer_id_to_uid)

    def now_s(self) -> float:
        """DHT time: seconds since 1970 by this computer's clock."""
        return float(get_dht_time())

    async def connected_peers(self) -> int:
        """Peers that p2pd is connected to."""
        try:
            return len(await bounded(self._p2p.list_peers(), _RPC_TIMEOUT_S))
        except _TRANSPORT_ERRORS as error:
            raise LocalDaemonError(f"p2pd does not list its peers: {error!r}") from error

    async def join(self, initial_peers: Iterable[str]) -> int:
        """Connect to peers, now and from now on whenever alone; returns how many answered.

        Their clocks are compared with ours: see `clock_problem`.
        """
        self._bootstrap.update(dict.fromkeys(initial_peers))
        answered = await asyncio.gather(*(self._meet(address) for address in self._bootstrap))
        if any(answered):
            await self._refresh()
        return len({peer for peer in answered if peer is not None})

    async def publish(self, record: Record, ttl_s: float) -> bool:
        """Sign the record and store it on the peers that are nearest to its key.

        A later publication always replaces an earlier one, also with a shorter life.

        Returns:
            Whether another peer keeps it, or nobody else is there and this peer does.
        Raises:
            RecordFormatError: every reader would refuse it.
        """
        now_s = self.now_s()
        sealed = self._open(seal(self._identity, record, swarm=self.swarm, ttl_s=ttl_s, now_s=now_s))
        place = (self._key(sealed), expected_subkey(sealed))
        floor_s = self._last_expiry.get(place, 0.0) + 0.001
        if min(sealed.expires_at_s, now_s + MAX_STORE_S) < floor_s:
            ttl_s = floor_s - now_s
            sealed = self._open(seal(self._identity, record, swarm=self.swarm, ttl_s=ttl_s, now_s=now_s))
        return await self._store(sealed)

    async def republish(self, data: bytes) -> bool:
        """Store a sealed record again, also another peer's (jobs outlive their requester's connection).

        Raises:
            RecordError: it is not a valid record now.
        """
        return await self._store(self._open(data))

    async def fetch(self, key: str) -> list[Sealed]:
        """All valid records under the key that its nearest peers know now, sorted by author."""
        try:
            found = await bounded(self._node.get(key, latest=True), _OPERATION_TIMEOUT_S)
            values = [] if found is None else [data for data, _ in found.value.values()]
        except asyncio.TimeoutError:
            logger.warning("the directory did not answer within %g s", _OPERATION_TIMEOUT_S)
            values = self._kept_here(key)
        records = []
        for data in values:
            with contextlib.suppress(RecordError):
                records.append(self._validator.open(data))
        return sorted(records, key=lambda sealed: (sealed.peer, sealed.issued_at_s))

    async def capabilities(self) -> list[Sealed]:
        """The newest capability record of every peer, over all shards, sorted by peer."""
        newest: dict[PeerId, Sealed] = {}
        shard, ahead = 0, self._shards
        while shard < MAX_SHARDS:
            batch = range(shard, min(max(ahead, shard + 1), MAX_SHARDS))
            found = await asyncio.gather(*(self.fetch(peers_key(self.swarm, one)) for one in batch))
            for sealed in (one for shard_records in found for one in shard_records):
                known = newest.get(sealed.peer)
                if known is None or known.issued_at_s < sealed.issued_at_s:
                    newest[sealed.peer] = sealed
            shard = batch.stop
            if shard >= self._shards and len(found[-1]) < _FULL_SHARD:
                break
        self._shards = shards_for(len(newest))
        return [newest[peer] for peer in sorted(newest)]

    async def stop(self) -> None:
        """Leave; bounded, also when p2pd is gone already."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait((keeper,), timeout=_RPC_TIMEOUT_S)
        self._node.is_alive = False
        if self._p2p.is_alive:
            with contextlib.suppress(*_TRANSPORT_ERRORS):
                await bounded(self._node.shutdown(), _RPC_TIMEOUT_S)

    def _kept_here(self, key: str) -> list[Any]:
        found = self._storage.get(DHTID.generate(source=key))
        return (
            [] if found is None else [BoundedSerializer.loads(value) for _, (value, _) in found.value.items()]
        )

    def _open(self, data: bytes) -> Sealed:
        return unseal(data, swarm=self.swarm, now_s=self.now_s())

    def _key(self, sealed: Sealed) -> str:
        return expected_key(sealed, swarm=self.swarm, shards=self._shards)

    async def _store(self, sealed: Sealed) -> bool:
        key, subkey = self._key(sealed), expected_subkey(sealed)
        expires_s = min(sealed.expires_at_s, self.now_s() + MAX_STORE_S)
        if sealed.peer == self._identity.peer_id:
            self._last_expiry[key, subkey] = expires_s
            self._forget_old_expiries()
        key_id = DHTID.generate(source=key)
        value = BoundedSerializer.dumps(sealed.data)
        client = self._node.protocol.client_mode
        try:
            nearest = await self._nearest(key_id, k_nearest=2 * REPLICAS, exclude_self=client)
        except asyncio.TimeoutError:
            nearest = {key_id: {}}
        candidates = list(nearest[key_id].values())
        here = False
        if not client and (self._p2p.peer_id in candidates[:REPLICAS] or not candidates):
            here = self._storage.store_subkey(key_id, subkey, value, expires_s)
        others = [peer for peer in candidates if peer != self._p2p.peer_id]
        stored = await self._store_on(others[:REPLICAS], key_id, subkey, value, expires_s)
        if stored < REPLICAS:
            stored += await self._store_on(others[REPLICAS:], key_id, subkey, value, expires_s)
        return stored > 0 if others else here

    async def _store_on(
        self, peers: list[PeerID], key_id: DHTID, subkey: str, value: bytes, expires_s: float
    ) -> int:
        store = self._node.protocol.call_store
        answers = await asyncio.gather(
            *(store(peer, [key_id], [value], [expires_s], [subkey]) for peer in peers)
        )
        return sum(bool(answer and answer[0]) for answer in answers)

    def _forget_old_expiries(self) -> None:
        now_s = self.now_s()
        for place in [place for place, expiry in self._last_expiry.items() if expiry < now_s]:
            del self._last_expiry[place]

    async def _keep_joined(self) -> None:
        pause_s = _RETRY_FIRST_S
        while True:
            try:
                alone = self.neighbours == 0
                if alone and self._bootstrap:
                    await self.join(())
                elif not alone:
                    await self._refresh()
            except (*_TRANSPORT_ERRORS, RemoteFault) as error:
                logger.warning("the directory could not be refreshed: %r", error)
            if self.neighbours:
                pause_s = _RETRY_FIRST_S
                await asyncio.sleep(_REFRESH_S)
            else:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _RETRY_LAST_S)

    async def _refresh(self) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await self._nearest(self._node.node_id)

    async def _nearest(self, key_id: DHTID, **options: Any) -> dict[DHTID, dict[DHTID, PeerID]]:
        """The peers nearest to a key.

        A caller that is cancelled leaves the search to end by itself: hivemind's, cancelled, forgets tasks.

        Raises:
            asyncio.TimeoutError: it took too long.
        """
        work = bounded(self._node.find_nearest_nodes([key_id], **options), _OPERATION_TIMEOUT_S)
        search = asyncio.create_task(work)
        self._searches.add(search)
        search.add_done_callback(self._searches.discard)
        return await asyncio.shield(search)

    async def _meet(self, address: str) -> PeerId | None:
        peer = peer_of(address)
        if peer is None or peer == self._identity.peer_id:
            return None
        try:
            await connect(self._p2p, address, 2 * _RPC_TIMEOUT_S)
            await self._ping(peer)
        except (*_TRANSPORT_ERRORS, PeerUnreachableError, ValueError) as error:
            logger.info("bootstrap peer %s: %s", address, error)
            return None
        return peer

    async def _ping(self, peer: PeerId) -> None:
        protocol = self._node.protocol
        remote = PeerID.from_base58(peer)
        asked_s = self.now_s()
        request = dht_pb2.PingRequest(peer=protocol.node_info, validate=False)
        stub = protocol.get_stub(remote)
        response = await bounded(stub.rpc_ping(request, timeout=_RPC_TIMEOUT_S), 2 * _RPC_TIMEOUT_S)
        self._compare_clocks(peer, response.dht_time, asked_s, self.now_s())
        if response.peer.node_id:
            await protocol.update_routing_table(
                DHTID.from_bytes(response.peer.node_id), remote, responded=True
            )

    def _compare_clocks(self, peer: PeerId, theirs_s: float, asked_s: float, answered_s: float) -> None:
        if asked_s - MAX_SKEW_S <= theirs_s <= answered_s + MAX_SKEW_S:
            self.clock_problem = ""
            return
        ahead_s = (asked_s + answered_s) / 2 - theirs_s
        self.clock_problem = (
            f"this computer's clock is {abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} "
            f"that of peer {peer}; peers refuse one another's records beyond {MAX_SKEW_S:g} s: "
            "switch on time synchronisation"
        )
        logger.warning("%s", self.clock_problem)
