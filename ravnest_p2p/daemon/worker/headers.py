"""What the header of a stage's frame says beside its tensors, and the checks on a stranger's.

Times are whole microseconds. They serve for nothing but the width of windows (`core.pipeline.window`), which
the plan bounds, so a peer that lies slows down its own pipeline and no more; here they are bounded too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ravnest_p2p.core.errors import ChunkMismatchError
from ravnest_p2p.core.pipeline.window import Echo

MICROBATCH, HELD, COMPUTE, SLOWEST, BEYOND = "i", "h", "p", "t", "w"
MICRO = 1_000_000
MAX_S = 86_400
MAX_BEYOND = 1 << 20
"""Micro-batches under way."""


def microbatch_from(header: Mapping[str, Any]) -> int:
    """Which micro-batch a frame belongs to.

    Raises:
        ChunkMismatchError: none (remote's fault).
    """
    i = header.get(MICROBATCH)
    if type(i) is not int or i < 0:
        raise ChunkMismatchError(f"a frame names micro-batch {i!r:.40}")
    return i


def slowest_header(slowest_s: float) -> dict[str, int]:
    """What goes with an activation."""
    return {SLOWEST: _whole(slowest_s, MAX_S)}


def slowest_from(header: Mapping[str, Any]) -> float:
    """What came with an activation, seconds.

    Raises:
        ChunkMismatchError: no such number (remote's fault).
    """
    return _number(header, SLOWEST, MAX_S)


def echo_header(echo: Echo) -> dict[str, int]:
    """What goes with a gradient."""
    return {
        HELD: _whole(echo.held_s, MAX_S),
        COMPUTE: _whole(echo.compute_s, MAX_S),
        SLOWEST: _whole(echo.slowest_s, MAX_S),
        BEYOND: _whole(echo.beyond, MAX_BEYOND),
    }


def echo_from(header: Mapping[str, Any]) -> Echo:
    """What came with a gradient.

    Raises:
        ChunkMismatchError: no such numbers (remote's fault).
    """
    return Echo(
        _number(header, HELD, MAX_S),
        _number(header, COMPUTE, MAX_S),
        _number(header, SLOWEST, MAX_S),
        _number(header, BEYOND, MAX_BEYOND),
    )


def _whole(value: float, most: float) -> int:
    return round(MICRO * min(max(value, 0.0), most))


def _number(header: Mapping[str, Any], key: str, most: float) -> float:
    value = header.get(key)
    if type(value) is not int or not 0 <= value <= MICRO * most:
        raise ChunkMismatchError(
            f"a frame says {key} = {value!r:.40}, which is no time or number of its kind"
        )
    return value / MICRO
