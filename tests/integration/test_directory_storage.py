"""Bounds of what strangers can put into this peer's memory, without any network."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.utils import MSGPackSerializer

from ravnest_p2p.core.types import Capability, Coordinate, PeerId, Reachability
from ravnest_p2p.network.directory import Directory
from ravnest_p2p.network.directory_storage import BoundedDictionary, BoundedSerializer, BoundedStorage
from ravnest_p2p.network.directory_validator import RecordValidator
from ravnest_p2p.network.identity import Identity, peer_id_of
from ravnest_p2p.network.records import CapabilityRecord, Sealed
from ravnest_p2p.network.records_keys import peers_key, shard_of, shards_for

KEY = DHTID.generate(source="key")


def test_a_dictionary_has_a_limit_of_entries_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedDictionary, "MAX_ITEMS", 3)
    monkeypatch.setattr(BoundedDictionary, "MAX_BYTES", 100)
    later_s = time.time() + 60
    dictionary = BoundedDictionary()
    assert all(dictionary.store(name, b"x" * 30, later_s) for name in "abc")
    assert not dictionary.store("d", b"", later_s)
    assert not dictionary.store("a", b"x" * 41, later_s + 1)
    assert dictionary.store("a", b"x" * 40, later_s + 1)
    assert not dictionary.store("a", b"older", later_s)


def test_endless_refreshing_does_not_grow_memory() -> None:
    dictionary = BoundedDictionary()
    for step in range(1000):
        assert dictionary.store("a", b"x", time.time() + 60 + step)
    assert len(dictionary.expiration_heap) < 100
    assert dictionary.top()[0] == "a"


def test_a_storage_has_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedStorage, "MAX_KEYS", 2)
    monkeypatch.setattr(BoundedStorage, "MAX_BYTES", 100)
    storage, later_s = BoundedStorage(), time.time() + 60
    keys = [DHTID.generate(source=str(number)) for number in range(3)]
    assert storage.store_subkey(keys[0], "a", b"x" * 40, later_s)
    assert storage.store_subkey(keys[1], "a", b"x" * 40, later_s)
    assert not storage.store_subkey(keys[2], "a", b"x", later_s)
    assert not storage.store_subkey(keys[0], "b", b"x" * 40, later_s)
    assert storage.store_subkey(keys[0], "b", b"x" * 20, later_s)
    assert not storage.store(keys[0], b"plain", later_s + 9)
    found = storage.get(keys[0])
    assert found is not None
    assert set(dict(found.value.items())) == {"a", "b"}


def test_a_key_lives_as_long_as_its_newest_entry() -> None:
    storage, now_s = BoundedStorage(), time.time()
    assert storage.store_subkey(KEY, "a", b"1", now_s + 0.05)
    assert storage.store_subkey(KEY, "b", b"2", now_s + 60)
    found = storage.get(KEY)
    assert found is not None
    assert found.expiration_time == now_s + 60


def test_dictionaries_travel_to_and_from_plain_hivemind() -> None:
    theirs, later_s = DictionaryDHTValue(), time.time() + 60
    theirs.store("a", b"1", later_s)
    ours = BoundedSerializer.loads(MSGPackSerializer.dumps(theirs))
    assert isinstance(ours, BoundedDictionary)
    back = MSGPackSerializer.loads(BoundedSerializer.dumps(ours))
    assert isinstance(back, DictionaryDHTValue)
    assert back.get("a") == (b"1", later_s)


@pytest.mark.parametrize(
    "inner",
    [
        [1, 2.0, [["a", b"1", "never"]]],
        [1, 2.0, [["a", "text", 3.0]]],
        [1, 2.0, [[1, b"1", 3.0]]],
        [1, 2.0, [["a", b"1"]]],
        [1, 2.0, [[["a"], b"1", 3.0]]],
        ["x", 2.0],
        {},
        [1, 2.0, [["a", b"1", 3.0]] * 2000],
    ],
    ids=range(8),
)
def test_hostile_dictionaries_are_refused(inner: Any) -> None:
    packed = msgpack.packb(msgpack.ExtType(0x50, msgpack.packb(inner)))
    with pytest.raises(ValueError, match=r"."):
        BoundedSerializer.loads(packed)


@pytest.mark.parametrize(
    "data",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xdc\x7f\xff" * 1000,
        msgpack.packb({"a": 1}),
        msgpack.packb("x" * 300),
        msgpack.packb(msgpack.ExtType(0x40, b"\x90")),
    ],
    ids=range(5),
)
def test_nothing_else_is_unpacked(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        BoundedSerializer.loads(data)


@pytest.mark.parametrize(("peers", "known_shards"), [(3, 1), (600, 1), (600, 3), (600, 9), (3000, 2)])
def test_all_shards_are_read_whatever_size_was_known(peers: int, known_shards: int) -> None:
    shards = shards_for(peers)
    kept: dict[str, list[Sealed]] = {}
    for number in range(peers):
        peer = peer_id_of(number.to_bytes(32, "big"))
        kept.setdefault(peers_key("test", shard_of(peer, shards)), []).append(sealed_offer(peer))

    class Fake(Directory):
        async def fetch(self, key: str) -> list[Sealed]:
            return kept.get(key, [])

    node: Any = SimpleNamespace(protocol=SimpleNamespace(storage=BoundedStorage()))
    directory = Fake(SimpleNamespace(), node, RecordValidator("test", time.time), Identity.generate())
    directory._shards = known_shards
    found = asyncio.run(directory.capabilities())
    assert len(found) == peers
    assert directory._shards == shards


def sealed_offer(peer: PeerId) -> Sealed:
    place = Coordinate((), 0.0, 1.0)
    offer = Capability(peer, "0", (), 0.0, 0.0, place, Reachability.UNKNOWN, 0.0, 0.0)
    return Sealed(CapabilityRecord(offer, 30.0), peer, 0.0, 60.0, b"")
