"""What a peer claims of its links, bounded by what others measured of them.

Problem: whoever claims the fastest line gets the best place in every plan, and nothing comes of it. Solution:
each peer publishes what it measured of others; a claim counts up to what most of them saw, with some slack.
A measurement speaks against a peer only where the line of whoever measured was not the narrow one, and one
voice alone decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import inf
from statistics import median_high

from .types import Capability, PeerId

SLACK = 1.5
"""Times what was measured that a claim may be: a line is not always free."""

MIN_VOICES = 2


def bounded(capabilities: Mapping[PeerId, Capability]) -> dict[PeerId, Capability]:
    """The capabilities, links claimed higher than others measured them lowered to that."""
    up: dict[PeerId, list[float]] = {}
    down: dict[PeerId, list[float]] = {}
    for observer in capabilities.values():
        for link in {link.peer: link for link in observer.measured}.values():
            if link.peer != observer.peer:
                up.setdefault(link.peer, []).append(_speaks(link.down_bps, observer.down_bps))
                down.setdefault(link.peer, []).append(_speaks(link.up_bps, observer.up_bps))
    return {
        peer: replace(
            capability,
            up_bps=_bound(capability.up_bps, up.get(peer, ())),
            down_bps=_bound(capability.down_bps, down.get(peer, ())),
        )
        for peer, capability in capabilities.items()
    }


def _speaks(measured_bps: float, own_bps: float) -> float:
    """What a measurement says of the other end; infinite where one's own end may have been the narrow one."""
    return measured_bps if measured_bps * SLACK < own_bps else inf


def _bound(claimed_bps: float, seen_bps: Iterable[float]) -> float:
    seen = list(seen_bps)
    if len(seen) < MIN_VOICES:
        return claimed_bps
    return min(claimed_bps, SLACK * median_high(seen))
