"""A directory that is right in the end: late, partial, split, and expiring.

Problem: a Kademlia DHT shows a write late, to some readers before others, loses some, and after a split
each side has its own truth until it heals. Protocols tested on a dictionary never meet this. Solution: each
side of a partition has a replica; a write appears in its replica after a random delay or never; a reader
may see only the older part of what is new; a split copies replicas with some records missing, healing
merges them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

from ravnest_p2p.core.types import PeerId

from .clock import VirtualClock


class Record(NamedTuple):
    """One value under (key, subkey)."""

    subkey: str
    value: Any
    written_s: float
    expires_s: float


@dataclass(eq=False)
class _Replica:
    logs: dict[str, list[Record]] = field(default_factory=dict)
    current: dict[str, dict[str, Record]] = field(default_factory=dict)

    def put(self, key: str, record: Record) -> None:
        newest = self.current.setdefault(key, {})
        old = newest.get(record.subkey)
        if old is not None and old.written_s > record.written_s:
            return
        newest[record.subkey] = record
        if old is None or old.value != record.value:
            self.logs.setdefault(key, []).append(record)


class SimulatedDirectory:
    """Shared store of expiring records.

    Args:
        side: tells the side of the partition that a peer is on.
        delay_s: shortest and longest time until a write can be read.
        loss: probability that a write never appears, or is missing from one side after a split.
        short_read: probability that a reader sees only a part of what is new.
    """

    def __init__(
        self,
        clock: VirtualClock,
        random: Random,
        side: Callable[[PeerId], int],
        delay_s: tuple[float, float] = (0.1, 1.5),
        loss: float = 0.05,
        short_read: float = 0.1,
    ) -> None:
        self.loss = loss
        self.short_read = short_read
        self._clock = clock
        self._random = random
        self._side = side
        self._delay_s = delay_s
        self._replicas: dict[int, _Replica] = {0: _Replica()}
        self._read: dict[PeerId, tuple[_Replica, dict[str, int]]] = {}

    def write(self, peer: PeerId, key: str, subkey: str, value: Any, ttl_s: float) -> None:
        """Store a value; a later write of the same subkey wins."""
        if self._random.random() < self.loss:
            return
        low_s, high_s = self._delay_s
        record = Record(subkey, value, self._clock.now_s, self._clock.now_s + ttl_s)
        delay_s = low_s + (high_s - low_s) * self._random.random()
        self._clock.after(delay_s, self._appear, peer, key, record)

    def news(self, peer: PeerId, key: str) -> list[Record]:
        """Records under the key that this reader has not seen, expired ones left out."""
        replica = self._replicas[self._side(peer)]
        known = self._read.get(peer)
        if known is None or known[0] is not replica:
            known = self._read[peer] = (replica, {})
        log = replica.logs.get(key)
        start = known[1].get(key, 0)
        if log is None or start == len(log):
            return []
        end = len(log)
        if self._random.random() < self.short_read:
            end = self._random.randint(start, end)
        known[1][key] = end
        now_s, current = self._clock.now_s, replica.current[key]
        newest = [current[record.subkey] for record in log[start:end]]
        return [record for record in newest if record.expires_s > now_s]

    def snapshot(self, peer: PeerId, key: str) -> dict[str, Any]:
        """All values under the key that are visible and not expired, by subkey."""
        records = self._replicas[self._side(peer)].current.get(key, {})
        now_s = self._clock.now_s
        return {record.subkey: record.value for record in records.values() if record.expires_s > now_s}

    def forget_reader(self, peer: PeerId) -> None:
        """The peer has restarted: everything is news to it."""
        self._read.pop(peer, None)

    def split(self, sides: int) -> None:
        """Give sides 0 … `sides` - 1 a replica each, with some records missing."""
        whole = self._replicas[0]
        self._replicas = {number: self._copy(whole) for number in range(sides)}

    def heal(self) -> None:
        """Merge all replicas; the newest record of each subkey wins."""
        first, *others = self._replicas.values()
        for other in others:
            for key, records in other.current.items():
                for record in records.values():
                    first.put(key, record)
        self._replicas = {0: first}

    def _appear(self, peer: PeerId, key: str, record: Record) -> None:
        self._replicas[self._side(peer)].put(key, record)

    def _copy(self, whole: _Replica) -> _Replica:
        replica = _Replica()
        for key, records in whole.current.items():
            for record in records.values():
                if self._random.random() >= self.loss:
                    replica.put(key, record)
        return replica
