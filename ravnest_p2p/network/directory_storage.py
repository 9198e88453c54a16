"""Bounds around hivemind's DHT storage.

Problem: `DHTLocalStorage` takes any number of keys and subkeys of any size, keeps a heap entry for every
store ever asked of it, and unpacks a peer's msgpack without limits (nested list headers alone can claim
gigabytes). One invalid entry in a dictionary makes hivemind drop the whole dictionary, so one liar, or
two clocks that disagree, would hide everybody else. Solution: dictionaries that refuse the entry over
their limit, a storage with a budget of keys and bytes, an unpacker with limits, and a filter that drops
bad entries one by one.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from types import MethodType
from typing import Any

import msgpack
from hivemind.dht.node import DHTNode
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue
from hivemind.dht.validation import DHTRecord
from hivemind.utils import MSGPackSerializer
from hivemind.utils.timed_storage import TimedStorage, ValueWithExpiration, get_dht_time

_EXT_DICTIONARY = 0x50


class BoundedDictionary(DictionaryDHTValue):  # type: ignore[misc]
    """Subkeys of one key: so many entries and bytes, and not more."""

    MAX_ITEMS = 1024
    MAX_BYTES = 2 * 1024 * 1024

    @property
    def size_bytes(self) -> int:
        """Bytes of all values."""
        return sum(len(item.value) for item in self.data.values())

    def store(self, key: str, value: bytes, expiration_time: float) -> bool:
        """Keep the entry if it is newer than the one there and fits; returns whether it was kept."""
        old = self.data.get(key)
        if old is not None and old.expiration_time >= expiration_time:
            return False
        if old is None and len(self) >= self.MAX_ITEMS:
            return False
        freed = 0 if old is None else len(old.value)
        if self.size_bytes + len(value) - freed > self.MAX_BYTES:
            return False
        kept: bool = super().store(key, value, expiration_time)
        if len(self.expiration_heap) > 4 * len(self.data) + 64:
            self.expiration_heap[:] = self.key_to_heap.values()
            heapq.heapify(self.expiration_heap)
        return kept

    @classmethod
    def unpackb(cls, raw: bytes) -> BoundedDictionary:
        """The dictionary that another peer packed; raises ValueError where it is none."""
        plain = _unpack_bounded(raw, cls.MAX_ITEMS)
        if type(plain) is not list or len(plain) != 3 or type(plain[2]) is not list:
            raise ValueError("not a packed dictionary")
        dictionary = cls()
        with dictionary.freeze():
            for item in plain[2]:
                if type(item) is not list or [type(part) for part in item] != [str, bytes, float]:
                    raise ValueError("not an entry of a dictionary")
                if not math.isnan(item[2]):
                    dictionary.store(*item)
        return dictionary


class BoundedSerializer(MSGPackSerializer):  # type: ignore[misc]
    """hivemind's serializer for what a directory needs: bytes, text, nothing, and bounded dictionaries."""

    _ext_types = {BoundedDictionary: _EXT_DICTIONARY, DictionaryDHTValue: _EXT_DICTIONARY}  # noqa: RUF012
    _ext_type_codes = {_EXT_DICTIONARY: BoundedDictionary}  # noqa: RUF012

    @classmethod
    def loads(cls, buf: bytes) -> object:
        """The object, or ValueError."""
        return _unpack_bounded(buf, 0, cls._hook)

    @classmethod
    def _hook(cls, code: int, data: bytes) -> BoundedDictionary:
        if code != _EXT_DICTIONARY:
            raise ValueError(f"unexpected extension type {code}")
        return BoundedDictionary.unpackb(data)


class BoundedStorage(DHTLocalStorage):  # type: ignore[misc]
    """What this peer keeps for others: dictionaries only, within a budget of keys and bytes."""

    MAX_KEYS = 8192
    MAX_BYTES = 64 * 1024 * 1024

    def __init__(self) -> None:
        super().__init__()
        self._bytes = 0
        self._counted_s = -math.inf

    def store(self, key: DHTID, value: Any, expiration_time: float, subkey: Any = None) -> bool:
        """Keep an entry of a dictionary; plain values are refused."""
        if not isinstance(subkey, str) or not isinstance(value, bytes):
            return False
        return self.store_subkey(key, subkey, value, expiration_time)

    def store_subkey(self, key: DHTID, subkey: str, value: bytes, expiration_time: float) -> bool:
        """Keep the entry if it is newer than the one there and within all limits."""
        if not self._has_room(len(value)):
            return False
        found = self.get(key)
        if found is None:
            if len(self) >= self.MAX_KEYS:
                return False
            dictionary, outer_expiration = BoundedDictionary(), -math.inf
        else:
            dictionary, outer_expiration = found.value, found.expiration_time
        if not dictionary.store(subkey, value, expiration_time):
            return False
        if expiration_time > outer_expiration:
            TimedStorage.store(self, key, dictionary, expiration_time)
        self._bytes += len(value)
        return True

    def _has_room(self, more_bytes: int) -> bool:
        if self._bytes + more_bytes > self.MAX_BYTES and get_dht_time() - self._counted_s > 1.0:
            self._counted_s = get_dht_time()
            self._bytes = sum(item.value.size_bytes for _, item in self.items())
        return self._bytes + more_bytes <= self.MAX_BYTES


def harden(node: DHTNode, storage: BoundedStorage | None = None) -> BoundedStorage:
    """Put the bounds around a node that has not joined anybody yet; returns its storage.

    Args:
        storage: that of the node before, so that a restart of p2pd loses nothing.
    """
    protocol = node.protocol
    protocol.serializer = BoundedSerializer
    storage = BoundedStorage() if storage is None else storage
    protocol.storage = storage
    protocol.cache = BoundedStorage()
    protocol._validate_dictionary = MethodType(_keep_valid, protocol)
    protocol.call_find = _find_without_claims(protocol.call_find)
    return storage


def _keep_valid(protocol: DHTProtocol, key: bytes, dictionary: BoundedDictionary) -> bool:
    if not isinstance(dictionary, BoundedDictionary):
        return False
    with dictionary.freeze():
        for subkey, (value, expiration_time) in list(dictionary.items()):
            record = DHTRecord(key, protocol.serializer.dumps(subkey), value, expiration_time)
            if not protocol.record_validator.validate(record):
                del dictionary[subkey]
    dictionary.latest_expiration_time = max(
        (item.expiration_time for item in dictionary.data.values()), default=-math.inf
    )
    return bool(dictionary)


def _find_without_claims(call_find: Callable[..., Any]) -> Callable[..., Any]:
    """Drop the responder's claim of the newest expiry: it could end a search early; entries are checked."""

    async def find(*args: Any, **kwargs: Any) -> Any:
        response = await call_find(*args, **kwargs)
        if response is None:
            return None
        return {
            key: (found and ValueWithExpiration(found.value, found.value.latest_expiration_time), nearest)
            for key, (found, nearest) in response.items()
        }

    return find


def _unpack_bounded(data: bytes, max_items: int, hook: Callable[[int, bytes], Any] | None = None) -> Any:
    return msgpack.unpackb(
        data,
        raw=False,
        max_array_len=max_items,
        max_map_len=0,
        max_str_len=256,
        max_ext_len=0 if hook is None else len(data),
        ext_hook=hook or msgpack.ExtType,
    )
