"""What a peer says it can do: sanity, a hash of many, and how alike two peers are.

Problem: capabilities come from strangers, and plans are only comparable where leaders and followers planned
with the same ones. Solution: `checked` refuses nonsense and normalises numbers, `snapshot_hash` names a set
of capabilities whatever its order, and `dissimilarity` is the distance by which the planner groups peers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from ravnest_p2p.core import coordinates
from ravnest_p2p.core.canonical import canonical_json, digest
from ravnest_p2p.core.errors import RecordFormatError
from ravnest_p2p.core.types import Capability, Device, LinkMeasured, Reachability

DEVICE_KINDS = ("cpu", "cuda", "mps")
MAX_DEVICES = 32
MAX_MEASURED = 8
MAX_MEMORY_BYTES = 1 << 46
MAX_FLOPS = 1e18
MAX_BPS = 1e13
MAX_UPTIME_S = 1e10
MAX_PEER_ID_CHARS = 128
MAX_VERSION_CHARS = 64

ASSUMED_BPS = 20e6
"""Link speed that is assumed of a peer that has not measured its own yet (it publishes 0)."""


def checked(capability: Capability) -> Capability:
    """The capability with numbers of the declared types, if it makes sense.

    Raises:
        RecordFormatError: a value is negative, no finite number, or over its maximum; too many devices; an
            unknown device kind; an empty or overlong id.
    """
    if not 0 < len(capability.peer) <= MAX_PEER_ID_CHARS:
        raise RecordFormatError("capability: peer id is empty or too long")
    if len(capability.version) > MAX_VERSION_CHARS:
        raise RecordFormatError("capability: version is too long")
    if len(capability.devices) > MAX_DEVICES:
        raise RecordFormatError(f"capability: more than {MAX_DEVICES} devices")
    if len(capability.measured) > MAX_MEASURED:
        raise RecordFormatError(f"capability: more than {MAX_MEASURED} measured links")
    return Capability(
        peer=capability.peer,
        version=capability.version,
        devices=tuple(_device(device) for device in capability.devices),
        up_bps=_number("up_bps", capability.up_bps, MAX_BPS),
        down_bps=_number("down_bps", capability.down_bps, MAX_BPS),
        coordinate=coordinates.checked(capability.coordinate),
        reachability=Reachability(capability.reachability),
        uptime_s=_number("uptime_s", capability.uptime_s, MAX_UPTIME_S),
        reliability=_number("reliability", capability.reliability, 1.0),
        online=bool(capability.online),
        microbatch_flops=_number("microbatch_flops", capability.microbatch_flops, MAX_FLOPS),
        measured=tuple(map(_measured, capability.measured)),
    )


def snapshot_hash(capabilities: Iterable[Capability]) -> str:
    """Hex SHA-256 of a set of valid capabilities, independent of their order."""
    ordered = sorted((checked(c) for c in capabilities), key=lambda c: (c.peer, canonical_json(c)))
    return digest(ordered)


def link_bps(capability: Capability) -> float:
    """The slower of up and down, as planning counts on it; `ASSUMED_BPS` for a direction not measured yet."""
    return min(capability.up_bps or ASSUMED_BPS, capability.down_bps or ASSUMED_BPS)


def dissimilarity(a: Capability, b: Capability) -> float:
    """Distance of two peers in compute and bandwidth: 0 for equals, 1 where one ratio is a factor of 2.

    Rounded to 1e-6, so that the last bits of a machine's logarithm decide nothing.
    """
    compute = math.log2(max(a.flops, 1.0) / max(b.flops, 1.0))
    bandwidth = math.log2(link_bps(a) / link_bps(b))
    return round(math.hypot(compute, bandwidth), 6)


def _device(device: Device) -> Device:
    if device.kind not in DEVICE_KINDS:
        raise RecordFormatError(f"capability: device kind must be one of {', '.join(DEVICE_KINDS)}")
    memory = device.memory_bytes
    if isinstance(memory, bool) or not isinstance(memory, int) or not 0 <= memory <= MAX_MEMORY_BYTES:
        raise RecordFormatError(f"capability: memory_bytes must be an integer in [0, {MAX_MEMORY_BYTES}]")
    return Device(kind=device.kind, memory_bytes=memory, flops=_number("flops", device.flops, MAX_FLOPS))


def _measured(link: LinkMeasured) -> LinkMeasured:
    up_bps = _number("a measured link's up_bps", link.up_bps, MAX_BPS)
    return LinkMeasured(link.peer, up_bps, _number("a measured link's down_bps", link.down_bps, MAX_BPS))


def _number(what: str, value: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= high:
        raise RecordFormatError(f"capability: {what} must be a number in [0, {high:g}]")
    return float(value)
