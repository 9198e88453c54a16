"""Round trips between any two peers, predicted from a few measured ones (Vivaldi with height).

Problem: the planner needs the latency of every pair, and N peers cannot measure N² pairs. Solution: each peer
keeps a point in a small Euclidean space plus a height (its own access link); every measured round trip pulls
it a little toward where distance + heights equals the measurement, the more so the surer the remote is of its
own place. Remote coordinates are hostile input: `checked` refuses nonsense, a measurement is clamped, and one
update moves a coordinate by at most `MAX_STEP_S`, so that a liar shifts us slowly and never breaks us.

Source: Dabek, Cox, Kaashoek, Morris, "Vivaldi: A Decentralized Network Coordinate System", SIGCOMM 2004.
"""

from __future__ import annotations

import hashlib
import math

from ravnest_p2p.core.errors import RecordFormatError
from ravnest_p2p.core.types import Coordinate

DIMENSIONS = 2
MIN_RTT_S = 1e-5
MAX_RTT_S = 10.0
MIN_HEIGHT_S = 1e-5
MAX_HEIGHT_S = 5.0
MAX_COMPONENT_S = 10.0
MIN_ERROR = 0.01
MAX_ERROR = 2.0
MAX_STEP_S = 0.25

_ERROR_GAIN = 0.25
_STEP_GAIN = 0.25


def initial() -> Coordinate:
    """Where a peer starts: the origin, entirely unsure."""
    return Coordinate(vector=(0.0,) * DIMENSIONS, height_s=MIN_HEIGHT_S, error=1.0)


def checked(coordinate: Coordinate) -> Coordinate:
    """The coordinate with plain floats, if it makes sense.

    Raises:
        RecordFormatError: another dimension, a value that is no finite number or beyond its bound, error ≤ 0.
    """
    if len(coordinate.vector) != DIMENSIONS:
        raise RecordFormatError(f"coordinate has {len(coordinate.vector)} dimensions, not {DIMENSIONS}")
    vector = tuple(
        _number("coordinate component", x, -MAX_COMPONENT_S, MAX_COMPONENT_S) for x in coordinate.vector
    )
    height_s = _number("coordinate height", coordinate.height_s, 0.0, MAX_HEIGHT_S)
    error = _number("coordinate error", coordinate.error, 0.0, MAX_ERROR)
    if error <= 0.0:
        raise RecordFormatError("coordinate error must be above 0")
    return Coordinate(vector=vector, height_s=height_s, error=error)


def predicted_rtt_s(a: Coordinate, b: Coordinate) -> float:
    """Predicted round trip between two peers, seconds, within [0, the sum of all bounds]."""
    return math.dist(a.vector, b.vector) + a.height_s + b.height_s


def update(own: Coordinate, remote: Coordinate, rtt_s: float, *, tie: str) -> Coordinate:
    """Our coordinate after one measured round trip to a remote.

    Args:
        own: ours; always valid.
        remote: as the remote published it.
        rtt_s: measured round trip; clamped to [MIN_RTT_S, MAX_RTT_S].
        tie: text that differs for every pair of peers (both ids, say); gives the direction of the push where
            both stand on one point.
    Raises:
        RecordFormatError: the remote's coordinate is nonsense.
        ValueError: the measurement is NaN (our fault).
    """
    if math.isnan(rtt_s):
        raise ValueError("a measured round trip cannot be NaN")
    remote = checked(remote)
    rtt_s = min(max(rtt_s, MIN_RTT_S), MAX_RTT_S)
    predicted_s = predicted_rtt_s(own, remote)
    weight = own.error / (own.error + remote.error)
    sample_error = min(abs(predicted_s - rtt_s) / rtt_s, MAX_ERROR)
    gain = _ERROR_GAIN * weight
    error = min(max(sample_error * gain + own.error * (1.0 - gain), MIN_ERROR), MAX_ERROR)
    step_s = min(max(_STEP_GAIN * weight * (rtt_s - predicted_s), -MAX_STEP_S), MAX_STEP_S)

    distance_s = math.dist(own.vector, remote.vector)
    heights_s = own.height_s + remote.height_s
    if distance_s > 1e-9:
        along_s = distance_s
        direction = tuple((x - y) / distance_s for x, y in zip(own.vector, remote.vector, strict=True))
    else:
        along_s = heights_s
        direction = _direction(tie)
    total_s = along_s + heights_s
    vector = tuple(
        min(max(x + step_s * (along_s / total_s) * d, -MAX_COMPONENT_S), MAX_COMPONENT_S)
        for x, d in zip(own.vector, direction, strict=True)
    )
    height_s = own.height_s + step_s * (heights_s / total_s)
    return Coordinate(vector, min(max(height_s, MIN_HEIGHT_S), MAX_HEIGHT_S), error)


def _direction(tie: str) -> tuple[float, ...]:
    """Unit vector that depends on the text alone."""
    angle = int.from_bytes(hashlib.sha256(tie.encode()).digest()[:8], "big") / 2**64 * 2.0 * math.pi
    return (math.cos(angle), math.sin(angle))


def _number(what: str, value: float, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise RecordFormatError(f"{what} must be a number in [{low:g}, {high:g}]")
    return float(value)
