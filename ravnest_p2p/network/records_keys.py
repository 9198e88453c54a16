"""Where each kind of record lies in the directory.

Every key carries the major version and the swarm's name, so that versions and swarms sharing one DHT
never meet. Capability records are spread over ceil(N / 256) keys, since the dictionary of one key does
not scale.
"""

from __future__ import annotations

import hashlib
import math

from ravnest_p2p.core.types import BlobHash, PeerId

VERSION = 1
PEERS_PER_SHARD = 256
MAX_SHARDS = 64


def key_prefix(swarm: str) -> str:
    """Start of all keys: major version and swarm."""
    return f"ravnest/{VERSION}/{swarm}"


def peers_key(swarm: str, shard: int) -> str:
    """Capability records of one shard of the peers."""
    return f"{key_prefix(swarm)}/peers/{shard}"


def jobs_key(swarm: str) -> str:
    """All submitted jobs."""
    return f"{key_prefix(swarm)}/jobs"


def cancels_key(swarm: str) -> str:
    """Requesters' wishes to stop their jobs."""
    return f"{key_prefix(swarm)}/cancels"


def tickets_key(swarm: str, epoch: int) -> str:
    """Tickets of an epoch."""
    return f"{key_prefix(swarm)}/tickets/{epoch}"


def plan_key(swarm: str, epoch: int) -> str:
    """Plans of an epoch, one for each term."""
    return f"{key_prefix(swarm)}/plan/{epoch}"


def blob_key(swarm: str, blob: BlobHash) -> str:
    """Peers that hold a blob."""
    return f"{key_prefix(swarm)}/blob/{blob}"


def shards_for(peers: int) -> int:
    """Number of keys over which so many capability records are spread: ceil(peers / 256), from 1 to 64."""
    return min(MAX_SHARDS, max(1, math.ceil(peers / PEERS_PER_SHARD)))


def shard_of(peer: PeerId, shards: int) -> int:
    """The peer's shard; its place is stable while the number of shards is."""
    return int.from_bytes(hashlib.sha256(peer.encode()).digest()[:8], "big") % shards
