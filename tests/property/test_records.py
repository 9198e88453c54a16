"""No byte string and no change of a record makes anything but a named error."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st

from ravnest_p2p.core.errors import RecordError, RecordFormatError
from ravnest_p2p.core.types import Capability, Coordinate, Device, PeerId, Reachability
from ravnest_p2p.network.identity import Identity, peer_id_of, public_key_of
from ravnest_p2p.network.records import CapabilityRecord, seal, unseal
from ravnest_p2p.network.records_codec import from_plain, to_plain
from ravnest_p2p.network.records_keys import MAX_SHARDS, shard_of, shards_for
from ravnest_p2p.network.records_manifest import parse_manifest

NOW_S = 1.8e9
ME = Identity.generate()
amounts = st.floats(0, 1e18)
sizes = st.integers(0, 2**63 - 1)
devices = st.builds(Device, st.sampled_from(["cpu", "cuda", "mps"]), sizes, amounts)
places = st.builds(Coordinate, st.lists(st.floats(-1e3, 1e3), max_size=8).map(tuple), amounts, amounts)
offers = st.builds(
    Capability,
    st.just(ME.peer_id),
    st.text("0123456789.", max_size=20),
    st.lists(devices, max_size=5).map(tuple),
    amounts,
    amounts,
    places,
    st.sampled_from(Reachability),
    amounts,
    st.floats(0, 1),
    st.booleans(),
)
plains = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(offers, amounts)
@settings(max_examples=60, deadline=None)
def test_what_is_sealed_is_unsealed(offer: Capability, epoch_s: float) -> None:
    record = CapabilityRecord(offer, epoch_s)
    data = seal(ME, record, swarm="s", ttl_s=60, now_s=NOW_S)
    assert unseal(data, swarm="s", now_s=NOW_S).record == record


@given(offers, st.data())
@settings(max_examples=150, deadline=None)
def test_no_changed_byte_passes(offer: Capability, data: st.DataObject) -> None:
    envelope = bytearray(seal(ME, CapabilityRecord(offer, 30.0), swarm="s", ttl_s=60, now_s=NOW_S))
    place = data.draw(st.integers(0, len(envelope) - 1))
    envelope[place] ^= data.draw(st.integers(1, 255))
    try:
        unseal(bytes(envelope), swarm="s", now_s=NOW_S)
    except RecordError:
        return
    raise AssertionError(f"a change at {place} passed")


@given(st.binary(max_size=300) | plains.map(msgpack.packb))
@settings(max_examples=300, deadline=None)
def test_junk_is_a_named_error(data: bytes) -> None:
    for read in (lambda: unseal(data, swarm="s", now_s=NOW_S), lambda: parse_manifest(data)):
        try:
            read()
        except RecordError:
            continue
        raise AssertionError("junk was accepted")


@given(offers, st.data())
@settings(max_examples=200, deadline=None)
def test_a_changed_field_is_refused_or_of_the_right_type(offer: Capability, data: st.DataObject) -> None:
    plain = to_plain(offer)
    name = data.draw(st.sampled_from(sorted(plain)))
    plain[name] = data.draw(plains)
    with contextlib.suppress(RecordFormatError):
        changed = from_plain(Capability, plain)
        assert replace(offer, **{name: getattr(changed, name)}) == changed
        assert to_plain(from_plain(Capability, to_plain(changed))) == to_plain(changed)
        for field in ("up_bps", "down_bps", "uptime_s", "reliability"):
            assert abs(getattr(changed, field)) < float("inf")


@given(st.binary(min_size=32, max_size=32))
def test_a_peer_id_holds_its_key(key: bytes) -> None:
    assert public_key_of(peer_id_of(key)) == key


@given(st.integers(0, 10**6), st.text(min_size=1, max_size=60))
def test_shards(peers: int, peer: str) -> None:
    shards = shards_for(peers)
    assert 1 <= shards <= MAX_SHARDS
    assert 0 <= shard_of(PeerId(peer), shards) < shards
    assert shards == min(MAX_SHARDS, max(1, -(-peers // 256)))
