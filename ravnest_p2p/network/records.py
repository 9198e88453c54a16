"""What peers write into the directory: signed, dated, sized and bound to one key.

Problem: the directory lies on strangers' computers, who may change, repeat, move, invent or swell
anything. Solution: a record is a value of `core.types` in an envelope that carries the swarm, the kind,
the author, both dates and the author's Ed25519 signature over all of it. `unseal` takes bytes and either
gives the record back or raises one named error. Key and subkey follow from the record itself
(`expected_key`, `expected_subkey`), so a good record under a foreign key is refused as well.

The envelope is a msgpack list: version, swarm, kind, peer, issued, expires, body (msgpack bytes),
signature.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import msgpack

from ravnest_p2p.core.errors import RecordExpiredError, RecordFormatError, RecordSignatureError
from ravnest_p2p.core.types import BlobHash, Capability, JobId, PeerId, Plan
from ravnest_p2p.network.identity import SIGNATURE_BYTES, Identity, verify
from ravnest_p2p.network.records_codec import from_plain, to_plain
from ravnest_p2p.network.records_keys import (
    VERSION,
    blob_key,
    cancels_key,
    jobs_key,
    peers_key,
    plan_key,
    shard_of,
    tickets_key,
)

MAX_SKEW_S = 3.0
"""How far two peers' clocks may differ."""
MAX_RECORD_BYTES = 256 * 1024
_DOMAIN = b"ravnest/record/1\x00"
_DAY_S = 86400.0


@dataclass(frozen=True, slots=True)
class CapabilityRecord:
    """What the author offers, and how long an epoch is in its configuration (all of a swarm must agree)."""

    KIND: ClassVar[str] = "capability"
    MAX_BYTES: ClassVar[int] = 8 * 1024
    MAX_TTL_S: ClassVar[float] = 600.0
    capability: Capability
    epoch_s: float


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job that waits for the swarm; whoever keeps its manifest may store the requester's record again."""

    KIND: ClassVar[str] = "job"
    MAX_BYTES: ClassVar[int] = 4 * 1024
    MAX_TTL_S: ClassVar[float] = 90 * _DAY_S
    job: JobId
    manifest: BlobHash
    manifest_bytes: int
    name: str
    requester: PeerId
    created_at_s: float


@dataclass(frozen=True, slots=True)
class CancelRecord:
    """The requester wants its job stopped; it counts only with a JobRecord of the same author."""

    KIND: ClassVar[str] = "cancel"
    MAX_BYTES: ClassVar[int] = 1024
    MAX_TTL_S: ClassVar[float] = 90 * _DAY_S
    job: JobId
    requester: PeerId


@dataclass(frozen=True, slots=True)
class TicketRecord:
    """Right to lead in an epoch; made by `make_ticket`, and checked by `unseal` against the author's key.

    Attributes:
        previous_hash: hash of the plan before; the reader has to compare it with the one that it knows, else
            the author could try many for a low ticket.
        signature: Ed25519 over (swarm, epoch, previous hash), hex.
        ticket: SHA-256 of the signature, hex.
    """

    KIND: ClassVar[str] = "ticket"
    MAX_BYTES: ClassVar[int] = 2 * 1024
    MAX_TTL_S: ClassVar[float] = 3600.0
    epoch: int
    previous_hash: str
    signature: str
    ticket: str

    @property
    def value(self) -> int:
        """The ticket as a number: the lower, the sooner its holder leads."""
        return int(self.ticket, 16)


@dataclass(frozen=True, slots=True)
class PlanRecord:
    """The plan that its leader publishes."""

    KIND: ClassVar[str] = "plan"
    MAX_BYTES: ClassVar[int] = MAX_RECORD_BYTES
    MAX_TTL_S: ClassVar[float] = 3600.0
    plan: Plan


@dataclass(frozen=True, slots=True)
class ProviderRecord:
    """The author holds this blob."""

    KIND: ClassVar[str] = "provider"
    MAX_BYTES: ClassVar[int] = 2 * 1024
    MAX_TTL_S: ClassVar[float] = 600.0
    blob: BlobHash
    size_bytes: int


Record = CapabilityRecord | JobRecord | CancelRecord | TicketRecord | PlanRecord | ProviderRecord
_KINDS: dict[str, type[Record]] = {
    kind.KIND: kind
    for kind in (CapabilityRecord, JobRecord, CancelRecord, TicketRecord, PlanRecord, ProviderRecord)
}


@dataclass(frozen=True, slots=True)
class Sealed:
    """A record whose author and dates are proven; `data` is the envelope, good for storing again."""

    record: Record
    peer: PeerId
    issued_at_s: float
    expires_at_s: float
    data: bytes


def seal(identity: Identity, record: Record, *, swarm: str, ttl_s: float, now_s: float) -> bytes:
    """The record in its signed envelope.

    Args:
        ttl_s: life from `now_s` on; at most the kind's `MAX_TTL_S`.
        now_s: DHT time.
    Raises:
        RecordFormatError: the record breaks a rule that every reader checks: its size, a NaN, ...
    """
    now_s = float(now_s)
    body = msgpack.packb(to_plain(record))
    expires_at_s = now_s + min(ttl_s, type(record).MAX_TTL_S)
    head = [VERSION, swarm, record.KIND, identity.peer_id, now_s, expires_at_s, body]
    data: bytes = msgpack.packb([*head, identity.sign(_signed_bytes(head))])
    unseal(data, swarm=swarm, now_s=now_s, kind=type(record))
    return data


def unseal(
    data: bytes, *, swarm: str, now_s: float, kind: type[Record] | None = None, grace_s: float = 0.0
) -> Sealed:
    """The record, after every check that needs nothing but the bytes and the time.

    Args:
        kind: refuse any other kind of record.
        grace_s: still accept a record that expired so many seconds ago (for holders whose clocks differ).
    Raises:
        RecordSignatureError: not signed by the peer that it names, or for a peer that it may not speak for.
        RecordExpiredError: its time is over, or it is dated in the future.
        RecordFormatError: malformed, oversized, of a foreign swarm, version or kind.
    """
    if len(data) > MAX_RECORD_BYTES + 1024:
        raise RecordFormatError(f"record of {len(data)} bytes; {MAX_RECORD_BYTES} is the limit of any kind")
    version, record_swarm, kind_name, peer, issued_at_s, expires_at_s, body, signature = _envelope(data)
    if version != VERSION:
        raise RecordFormatError(f"record of version {version}; this software reads {VERSION}")
    if record_swarm != swarm:
        raise RecordFormatError("record of another swarm")
    record_type = _KINDS.get(kind_name)
    if record_type is None or (kind is not None and record_type is not kind):
        raise RecordFormatError(f"record of an unexpected kind {kind_name[:20]!r}")
    if len(data) > record_type.MAX_BYTES:
        raise RecordFormatError(
            f"{kind_name} record of {len(data)} bytes; the limit is {record_type.MAX_BYTES}"
        )
    _check_dates(kind_name, issued_at_s, expires_at_s, now_s, grace_s, record_type.MAX_TTL_S)
    head = [version, record_swarm, kind_name, peer, issued_at_s, expires_at_s, body]
    if len(signature) != SIGNATURE_BYTES or not verify(PeerId(peer), _signed_bytes(head), signature):
        raise RecordSignatureError(f"{kind_name} record without a valid signature of the peer that it names")
    record = from_plain(record_type, _unpack(body))
    _check_author(record, PeerId(peer), swarm)
    return Sealed(record, PeerId(peer), issued_at_s, expires_at_s, data)


def check_dates(sealed: Sealed, now_s: float, grace_s: float = 0.0) -> None:
    """Check a record that was opened earlier against the time of now.

    Raises:
        RecordExpiredError: its time is over.
    """
    record = sealed.record
    _check_dates(record.KIND, sealed.issued_at_s, sealed.expires_at_s, now_s, grace_s, record.MAX_TTL_S)


def make_ticket(identity: Identity, *, swarm: str, epoch: int, previous_hash: str) -> TicketRecord:
    """The peer's one possible ticket for the epoch, given the plan before it."""
    signature = identity.sign(ticket_message(swarm, epoch, previous_hash))
    return TicketRecord(epoch, previous_hash, signature.hex(), hashlib.sha256(signature).hexdigest())


def ticket_message(swarm: str, epoch: int, previous_hash: str) -> bytes:
    """What a ticket signs."""
    packed: bytes = msgpack.packb([swarm, epoch, previous_hash])
    return b"ravnest/ticket/1\x00" + packed


def expected_key(sealed: Sealed, *, swarm: str, shards: int) -> str:
    """The only key under which this record may lie."""
    record = sealed.record
    if isinstance(record, CapabilityRecord):
        return peers_key(swarm, shard_of(sealed.peer, shards))
    if isinstance(record, JobRecord):
        return jobs_key(swarm)
    if isinstance(record, CancelRecord):
        return cancels_key(swarm)
    if isinstance(record, TicketRecord):
        return tickets_key(swarm, record.epoch)
    if isinstance(record, PlanRecord):
        return plan_key(swarm, record.plan.fence.epoch)
    return blob_key(swarm, record.blob)


def expected_subkey(sealed: Sealed) -> str:
    """The only subkey under which this record may lie: always bound to its author, so nobody displaces it."""
    if isinstance(sealed.record, (JobRecord, CancelRecord)):
        return f"{sealed.record.job}/{sealed.peer}"
    if isinstance(sealed.record, PlanRecord):
        return f"{sealed.record.plan.fence.term}/{sealed.peer}"
    return sealed.peer


def _signed_bytes(head: list[Any]) -> bytes:
    packed: bytes = msgpack.packb(head)
    return _DOMAIN + packed


def _unpack(data: bytes) -> Any:
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_array_len=8192,
            max_map_len=64,
            max_ext_len=0,
            max_str_len=min(len(data), 4096),
            max_bin_len=len(data),
        )
    except (ValueError, TypeError, UnicodeDecodeError, msgpack.UnpackException) as error:
        raise RecordFormatError(f"not msgpack within limits: {str(error)[:80]}") from error


def _envelope(data: bytes) -> tuple[int, str, str, str, float, float, bytes, bytes]:
    if not data:
        raise RecordFormatError("empty record")
    plain = _unpack(data)
    wanted = (int, str, str, str, float, float, bytes, bytes)
    if type(plain) is not list or len(plain) not in (len(wanted) - 1, len(wanted)):
        raise RecordFormatError("not a record envelope")
    if any(type(part) is not kind for part, kind in zip(plain, wanted, strict=False)):
        raise RecordFormatError("not a record envelope")
    if len(plain) == len(wanted) - 1:
        raise RecordSignatureError("unsigned record")
    version, swarm, kind, peer, issued, expires, body, signature = plain
    return version, swarm, kind, peer, issued, expires, body, signature


def _check_dates(
    kind: str, issued_at_s: float, expires_at_s: float, now_s: float, grace_s: float, max_ttl_s: float
) -> None:
    if not (math.isfinite(issued_at_s) and math.isfinite(expires_at_s)) or expires_at_s <= issued_at_s:
        raise RecordFormatError(f"{kind} record with senseless dates")
    if issued_at_s > now_s + MAX_SKEW_S + grace_s:
        raise RecordExpiredError(
            f"{kind} record dated {issued_at_s - now_s:.1f} s in the future; "
            f"clocks must agree within {MAX_SKEW_S:g} s"
        )
    if expires_at_s - issued_at_s > max_ttl_s + 1e-3:
        raise RecordExpiredError(f"{kind} record that would live longer than {max_ttl_s:g} s")
    if expires_at_s + grace_s < now_s:
        raise RecordExpiredError(f"{kind} record that expired {now_s - expires_at_s:.1f} s ago")


def _check_author(record: Record, peer: PeerId, swarm: str) -> None:
    if isinstance(record, CapabilityRecord):
        _check_capability(record)
        spoken_for = record.capability.peer
    elif isinstance(record, (JobRecord, CancelRecord)):
        spoken_for = record.requester
    elif isinstance(record, PlanRecord):
        if record.plan.swarm != swarm:
            raise RecordFormatError("plan of another swarm")
        spoken_for = record.plan.leader
    elif isinstance(record, TicketRecord):
        _check_ticket(record, peer, swarm)
        spoken_for = peer
    else:
        spoken_for = peer
    if spoken_for != peer:
        raise RecordSignatureError(f"{record.KIND} record for a peer that did not sign it")


def _check_capability(record: CapabilityRecord) -> None:
    offer = record.capability
    amounts = [offer.up_bps, offer.down_bps, offer.uptime_s, offer.reliability]
    amounts += [
        record.epoch_s,
        offer.microbatch_flops,
        offer.coordinate.height_s,
        offer.coordinate.error,
        *(device.flops for device in offer.devices),
    ]
    if min(amounts) < 0 or offer.reliability > 1:
        raise RecordFormatError("capability with a negative amount, or a reliability above 1")
    if len(offer.devices) > 32 or len(offer.coordinate.vector) > 8:
        raise RecordFormatError("capability with too many devices or dimensions")


def _check_ticket(record: TicketRecord, peer: PeerId, swarm: str) -> None:
    try:
        signature = bytes.fromhex(record.signature)
    except ValueError:
        signature = b""
    if record.signature != signature.hex() or record.ticket != hashlib.sha256(signature).hexdigest():
        raise RecordFormatError("ticket that is not the hash of its signature")
    if not verify(peer, ticket_message(swarm, record.epoch, record.previous_hash), signature):
        raise RecordSignatureError("ticket without its holder's signature")
