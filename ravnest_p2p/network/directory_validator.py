"""The gate through which every record of the DHT passes.

Problem: hivemind gives a validator the *hash* of the key, a packed subkey and a packed value, from
anybody. Solution: open the sealed record, derive from it the one key and subkey where it may lie, and
compare. What was opened is remembered by its hash, since the same records come again with each read and a
signature costs 0.1 ms to check.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter, OrderedDict
from collections.abc import Callable

import msgpack
from hivemind.dht.routing import DHTID
from hivemind.dht.validation import DHTRecord, RecordValidatorBase

from ravnest_p2p.core.errors import RecordError, RecordExpiredError, RecordFormatError
from ravnest_p2p.network.records import (
    MAX_RECORD_BYTES,
    MAX_SKEW_S,
    CapabilityRecord,
    Sealed,
    check_dates,
    expected_key,
    expected_subkey,
    unseal,
)
from ravnest_p2p.network.records_keys import MAX_SHARDS, peers_key, shard_of

logger = logging.getLogger(__name__)

MAX_STORE_S = 600.0
"""How long a record may lie in the DHT before somebody stores it again, however long it is valid."""
_REMEMBERED = 4096
_MAX_SUBKEY_CHARS = 256


class RecordValidator(RecordValidatorBase):  # type: ignore[misc]
    """Lets through sealed records of our swarm under their own key, and counts all others."""

    def __init__(self, swarm: str, now_s: Callable[[], float], refusals: Counter[str] | None = None) -> None:
        self.swarm = swarm
        self.refusals: Counter[str] = Counter() if refusals is None else refusals
        self._now_s = now_s
        self._opened: OrderedDict[bytes, Sealed] = OrderedDict()
        self._shard_keys = {_hash_of(peers_key(swarm, shard)): shard for shard in range(MAX_SHARDS)}

    def validate(self, record: DHTRecord) -> bool:
        """Whether the record may be stored or believed; called by hivemind, never raises."""
        try:
            self._check(record)
        except RecordError as error:
            self.refusals[type(error).__name__] += 1
            logger.debug("record refused: %s", error)
            return False
        return True

    def open(self, data: bytes, *, grace_s: float = 0.0) -> Sealed:
        """`unseal`, with a memory.

        Raises:
            RecordError: as `unseal`.
        """
        digest = hashlib.sha256(data).digest()
        sealed = self._opened.get(digest)
        if sealed is not None:
            check_dates(sealed, self._now_s(), grace_s)
            return sealed
        sealed = unseal(data, swarm=self.swarm, now_s=self._now_s(), grace_s=grace_s)
        self._opened[digest] = sealed
        if len(self._opened) > _REMEMBERED:
            self._opened.popitem(last=False)
        return sealed

    def _check(self, record: DHTRecord) -> None:
        sealed = self.open(_data_of(record.value), grace_s=MAX_SKEW_S)
        if _subkey_of(record.subkey) != expected_subkey(sealed):
            raise RecordFormatError("record under a foreign subkey")
        if not self._right_key(record.key, sealed):
            raise RecordFormatError("record under a foreign key")
        expires_s = record.expiration_time
        if not isinstance(expires_s, float) or not math.isfinite(expires_s):
            raise RecordFormatError("record with a senseless expiry")
        if expires_s > sealed.expires_at_s + 1e-3:
            raise RecordExpiredError("record to be kept beyond its own end")
        if expires_s > self._now_s() + MAX_STORE_S + 2 * MAX_SKEW_S:
            raise RecordExpiredError(f"record to be kept for longer than {MAX_STORE_S:g} s")

    def _right_key(self, key: bytes, sealed: Sealed) -> bool:
        if not isinstance(sealed.record, CapabilityRecord):
            return key == _hash_of(expected_key(sealed, swarm=self.swarm, shards=1))
        # The author spread by its own estimate of the swarm's size, so any number of shards may be meant.
        shard = self._shard_keys.get(key)
        return shard is not None and any(
            shard_of(sealed.peer, shards) == shard for shards in range(shard + 1, MAX_SHARDS + 1)
        )


def _hash_of(key: str) -> bytes:
    hashed: bytes = DHTID.generate(source=key).to_bytes()
    return hashed


def _data_of(value: bytes) -> bytes:
    if len(value) > MAX_RECORD_BYTES + 1024:
        raise RecordFormatError(f"value of {len(value)} bytes")
    data = _unpack(value)
    if type(data) is not bytes:
        raise RecordFormatError("not a sealed record")
    return data


def _subkey_of(subkey: bytes) -> str:
    text = _unpack(subkey) if len(subkey) <= _MAX_SUBKEY_CHARS + 8 else None
    if type(text) is not str:
        raise RecordFormatError("record without a subkey")
    return text


def _unpack(data: bytes) -> object:
    try:
        return msgpack.unpackb(
            data, raw=False, max_array_len=0, max_map_len=0, max_ext_len=0, max_str_len=_MAX_SUBKEY_CHARS
        )
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise RecordFormatError("not a sealed record") from error
