from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from typing import Any

import msgpack
import pytest

from ravnest_p2p.core.errors import RecordError, RecordExpiredError, RecordFormatError, RecordSignatureError
from ravnest_p2p.core.types import (
    BlobHash,
    Capability,
    ClusterPlan,
    Coordinate,
    Device,
    Fence,
    Generation,
    JobId,
    JobPlan,
    PeerId,
    Piece,
    Plan,
    Reachability,
    StageAssignment,
)
from ravnest_p2p.network.identity import Identity
from ravnest_p2p.network.records import (
    CancelRecord,
    CapabilityRecord,
    JobRecord,
    PlanRecord,
    ProviderRecord,
    Record,
    TicketRecord,
    expected_key,
    expected_subkey,
    make_ticket,
    seal,
    unseal,
)
from ravnest_p2p.network.records_codec import from_plain, to_plain

NOW_S = 1.8e9
SWARM = "test"
ME, OTHER = Identity.generate(), Identity.generate()
HASH, JOB = BlobHash("ab" * 32), JobId("12" * 32)


def offer(peer: PeerId = ME.peer_id, **changes: Any) -> Capability:
    device = Device("cuda", 8 << 30, 1e13)
    place = Coordinate((0.5, -0.5), 0.001, 1.0)
    return replace(
        Capability(peer, "0.1", (device,), 1e7, 1e8, place, Reachability.PUNCHED, 60.0, 0.9), **changes
    )


def a_plan(leader: PeerId = ME.peer_id, **changes: Any) -> Plan:
    stage = StageAssignment(OTHER.peer_id, 0, 3, 2)
    piece = Piece(0, 3, 40, 5, HASH, (OTHER.peer_id,))
    job = JobPlan(
        JOB,
        Generation(7, 1, "tag"),
        (ClusterPlan((stage,), 10, 3),),
        (leader,),
        40,
        5,
        (piece,),
        "ok",
        (0,),
        1,
    )
    return replace(Plan(SWARM, Fence(7, 2), leader, 3, "aa", "bb", (job,)), **changes)


def all_records() -> list[Record]:
    return [
        CapabilityRecord(offer(), 30.0),
        JobRecord(JOB, HASH, 1000, "my job", ME.peer_id, NOW_S),
        CancelRecord(JOB, ME.peer_id),
        make_ticket(ME, swarm=SWARM, epoch=7, previous_hash="aa"),
        PlanRecord(a_plan()),
        ProviderRecord(HASH, 12),
    ]


def sealed(record: Record, who: Identity = ME, **changes: Any) -> bytes:
    return seal(who, record, **{"swarm": SWARM, "ttl_s": 60.0, "now_s": NOW_S, **changes})


def resigned(data: bytes, who: Identity = ME, body: Any = None, **places: Any) -> bytes:
    """The envelope with some places changed, signed rightly: what a hostile author can do."""
    names = ["version", "swarm", "kind", "peer", "issued", "expires", "body"]
    head = msgpack.unpackb(data)[:-1]
    for name, value in places.items():
        head[names.index(name)] = value
    if body is not None:
        head[6] = msgpack.packb(body)
    return msgpack.packb([*head, who.sign(b"ravnest/record/1\x00" + msgpack.packb(head))])


@pytest.mark.parametrize("record", all_records(), ids=lambda record: record.KIND)
def test_round_trip(record: Record) -> None:
    data = sealed(record)
    opened = unseal(data, swarm=SWARM, now_s=NOW_S + 59, kind=type(record))
    assert opened.record == record
    assert opened.peer == ME.peer_id
    assert (opened.issued_at_s, opened.expires_at_s) == (NOW_S, NOW_S + 60)
    assert resigned(data) == data


def test_a_plan_that_says_nothing_of_rings_has_one_in_the_order_of_the_numbers() -> None:
    plain = to_plain(a_plan())
    for name in ("ring_order", "ring_columns"):
        del plain["jobs"][0][name]
    (job,) = from_plain(Plan, plain).jobs
    assert (job.ring_order, job.ring_columns) == ((), 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("ring_order", value) for value in (0, [-1], [True], [0] * 70_000)),
        *(("ring_columns", value) for value in (-1, 1.0, None)),
    ],
)
def test_rings_of_another_kind_are_refused(name: str, value: object) -> None:
    plain = to_plain(a_plan())
    plain["jobs"][0][name] = value
    with pytest.raises(RecordFormatError, match=name):
        from_plain(Plan, plain)


def test_a_plan_that_says_nothing_of_overlap_stops_for_rounds() -> None:
    plain = to_plain(a_plan())
    assert plain["jobs"][0]["clusters"][0].pop("overlap") == 3
    assert from_plain(Plan, plain).jobs[0].clusters[0].overlap == 0


@pytest.mark.parametrize("value", [-1, 1.0, True, None, "3", [3], 2**63])
def test_an_overlap_of_another_kind_is_refused(value: object) -> None:
    plain = to_plain(a_plan())
    plain["jobs"][0]["clusters"][0]["overlap"] = value
    with pytest.raises(RecordFormatError, match="overlap"):
        from_plain(Plan, plain)


def test_keys_bind_records_to_their_place() -> None:
    places = {}
    for record in all_records():
        opened = unseal(sealed(record), swarm=SWARM, now_s=NOW_S)
        places[record.KIND] = expected_key(opened, swarm=SWARM, shards=1), expected_subkey(opened)
    assert places == {
        "capability": ("ravnest/1/test/peers/0", ME.peer_id),
        "job": ("ravnest/1/test/jobs", f"{JOB}/{ME.peer_id}"),
        "cancel": ("ravnest/1/test/cancels", f"{JOB}/{ME.peer_id}"),
        "ticket": ("ravnest/1/test/tickets/7", ME.peer_id),
        "plan": ("ravnest/1/test/plan/7", f"2/{ME.peer_id}"),
        "provider": (f"ravnest/1/test/blob/{HASH}", ME.peer_id),
    }


@pytest.mark.parametrize(
    ("now_s", "error"),
    [
        (NOW_S + 60.1, RecordExpiredError),
        (NOW_S - 3.1, RecordExpiredError),
        (NOW_S + 59.9, None),
        (NOW_S - 2.9, None),
    ],
)
def test_dates(now_s: float, error: type[RecordError] | None) -> None:
    data = sealed(ProviderRecord(HASH, 1))
    if error is None:
        unseal(data, swarm=SWARM, now_s=now_s)
        return
    with pytest.raises(error):
        unseal(data, swarm=SWARM, now_s=now_s)
    unseal(data, swarm=SWARM, now_s=now_s, grace_s=0.2)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"version": 2}, RecordFormatError),
        ({"swarm": "other"}, RecordFormatError),
        ({"kind": "plan"}, RecordFormatError),
        ({"kind": "unknown"}, RecordFormatError),
        ({"peer": OTHER.peer_id}, RecordSignatureError),
        ({"peer": "nobody"}, RecordSignatureError),
        ({"issued": math.nan}, RecordFormatError),
        ({"expires": math.inf}, RecordFormatError),
        ({"expires": NOW_S - 1}, RecordFormatError),
        ({"expires": NOW_S + 601}, RecordExpiredError),
        ({"issued": NOW_S + 4}, RecordExpiredError),
        ({"body": ["not a map"]}, RecordFormatError),
        ({"body": {"blob": HASH}}, RecordFormatError),
        ({"body": {"blob": HASH, "size_bytes": 1, "more": 1}}, RecordFormatError),
        ({"body": {"blob": HASH, "size_bytes": True}}, RecordFormatError),
        ({"body": {"blob": HASH, "size_bytes": 1.0}}, RecordFormatError),
        ({"body": {"blob": HASH, "size_bytes": -1}}, RecordFormatError),
        ({"body": {"blob": HASH, "size_bytes": 2**63}}, RecordFormatError),
        ({"body": {"blob": "../../etc/passwd", "size_bytes": 1}}, RecordFormatError),
        ({"body": {"blob": HASH.upper(), "size_bytes": 1}}, RecordFormatError),
        ({"body": {"blob": HASH + "\n", "size_bytes": 1}}, RecordFormatError),
    ],
)
def test_a_hostile_author_is_refused(changes: dict[str, Any], error: type[RecordError]) -> None:
    data = resigned(sealed(ProviderRecord(HASH, 1)), **changes)
    with pytest.raises(error):
        unseal(data, swarm=SWARM, now_s=NOW_S)


def test_unsigned_and_foreign_signatures_are_refused() -> None:
    data = sealed(ProviderRecord(HASH, 1))
    parts = msgpack.unpackb(data)
    for signature in ([], [b""], [OTHER.sign(b"ravnest/record/1\x00" + msgpack.packb(parts[:-1]))]):
        with pytest.raises(RecordSignatureError):
            unseal(msgpack.packb(parts[:-1] + signature), swarm=SWARM, now_s=NOW_S)


@pytest.mark.parametrize(
    "record",
    [
        CapabilityRecord(offer(OTHER.peer_id), 30.0),
        JobRecord(JOB, HASH, 1, "job", OTHER.peer_id, NOW_S),
        CancelRecord(JOB, OTHER.peer_id),
        PlanRecord(a_plan(OTHER.peer_id)),
        make_ticket(OTHER, swarm=SWARM, epoch=7, previous_hash=""),
        make_ticket(ME, swarm="other", epoch=7, previous_hash=""),
    ],
    ids=lambda record: record.KIND,
)
def test_nobody_speaks_for_another(record: Record) -> None:
    with pytest.raises(RecordSignatureError):
        sealed(record)


@pytest.mark.parametrize(
    "record",
    [
        CapabilityRecord(offer(up_bps=math.nan), 30.0),
        CapabilityRecord(offer(up_bps=-1.0), 30.0),
        CapabilityRecord(offer(reliability=1.5), 30.0),
        CapabilityRecord(offer(version="v" * 2000), 30.0),
        CapabilityRecord(offer(devices=(Device("cpu", 1, 1.0),) * 33), 30.0),
        CapabilityRecord(offer(coordinate=Coordinate((1.0,) * 9, 0.0, 1.0)), 30.0),
        CapabilityRecord(offer(coordinate=Coordinate((math.inf,), 0.0, 1.0)), 30.0),
        PlanRecord(a_plan(swarm="other")),
        PlanRecord(a_plan(jobs=a_plan().jobs * 1000)),
        TicketRecord(7, "aa", "zz", hashlib.sha256(b"").hexdigest()),
        replace(make_ticket(ME, swarm=SWARM, epoch=7, previous_hash=""), ticket="00" * 32),
    ],
    ids=lambda record: record.KIND,
)
def test_senseless_records_are_refused_before_they_leave(record: Record) -> None:
    with pytest.raises(RecordFormatError):
        sealed(record)


def test_a_ticket_for_another_epoch_does_not_verify() -> None:
    ticket = make_ticket(ME, swarm=SWARM, epoch=7, previous_hash="aa")
    for changed in (replace(ticket, epoch=8), replace(ticket, previous_hash="bb")):
        with pytest.raises(RecordSignatureError):
            sealed(changed)


def test_sizes_are_checked_first() -> None:
    with pytest.raises(RecordFormatError, match="limit"):
        unseal(b"\xdd\xff\xff\xff\xff" * 100_000, swarm=SWARM, now_s=NOW_S)
    with pytest.raises(RecordFormatError, match="limit is 2048"):
        unseal(resigned(sealed(ProviderRecord(HASH, 1)), body={"x": "y" * 3000}), swarm=SWARM, now_s=NOW_S)
    nested = b"\xdc\x20\x00" * 60_000
    with pytest.raises(RecordFormatError):
        unseal(nested, swarm=SWARM, now_s=NOW_S)
