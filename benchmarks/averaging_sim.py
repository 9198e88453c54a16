"""Do steps, bytes, time and memory follow the formulas? `python -m benchmarks.averaging --sim`, two minutes.

The product's state machine runs for each holder of each segment in virtual time; figures are exact and the
same on every machine, but for the seconds of `ten thousand`. `averaging_formulas` says what is expected.

Sections: `ring` (the last one of a single chunk a way, where the latency counts in full), `five rings` (four
clusters that cut differently, so that a peer's line carries up to five segments; equal and unequal lines),
`grid` (up to 1,000 clusters), `ten thousand` (how long their rings are planned; ten chunks, simulated; what
the formulas say of all).
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from benchmarks.averaging_formulas import LATENCY_S, RATE_BPS, Section, sent_bytes, steps
from benchmarks.averaging_many import ten_thousand
from benchmarks.common import Goal
from ravnest_p2p.core.rings import Ways, segments, ways
from ravnest_p2p.core.rings.ways import WINDOW
from ravnest_p2p.core.types import ClusterPlan, PeerId, StageAssignment
from ravnest_p2p.testing.rings_timed import Line, Share, Taken, average_all
from ravnest_p2p.training.averaging import CHUNK_BYTES, ELEMENT_BYTES, chunk_count

RINGS = ((2, 64e6), (3, 64e6), (4, 64e6), (8, 64e6), (16, 64e6), (64, 64 * CHUNK_BYTES))
"""Members, and bytes of the segment."""

GRIDS = ((64, 8, 4), (250, 16, 1), (1000, 32, 1))
"""Members, columns, and chunks that take each way."""

CUTS = ((), (2,), (1, 4), (3,))
"""First layers of the later stages of each cluster: five segments of five layers."""

LAYERS_BYTES = (16e6, 4e6, 8e6, 2e6, 20e6)
UNEQUAL = (
    Line(1e8, 2e8),
    Line(5e7, 5e7),
    Line(8e7, 1e8),
    Line(2e7, 1e8),
    Line(4e7, 4e7),
    Line(1e8, 3e7),
    Line(6e7, 6e7),
    Line(5e7, 2e8),
)


def run() -> Section:
    """All sections, by name, and their goals."""
    rows: dict[str, Any] = {}
    goals: list[Goal] = []
    for name, section in SECTIONS.items():
        begun_s = time.process_time()
        rows[name], found = section()
        goals += found
        print(f"{name}: {time.process_time() - begun_s:.0f} s of computing", file=sys.stderr, flush=True)
    memory_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return rows, [*goals, Goal("memory of the simulation", memory_mib, "MiB", "<= 2048")]


def rings() -> Section:
    """One segment, one ring, equal lines."""
    return _one_by_one((members, members, round(size)) for members, size in RINGS)


def grids() -> Section:
    """One segment, one grid, equal lines; each way is taken by as many chunks."""
    return _one_by_one(
        (members, columns, each * ways(members, columns).count * CHUNK_BYTES)
        for members, columns, each in GRIDS
    )


def five_rings() -> Section:
    """All segments at once, over the lines of their peers."""
    equal = [Line(RATE_BPS, RATE_BPS)] * len(UNEQUAL)
    rows: dict[str, Any] = {}
    goals = []
    shares, count = _cut_differently(), len(CUTS)
    for name, lines in (("equal lines", equal), ("unequal lines", UNEQUAL)):
        taken = average_all(lines, shares, LATENCY_S)
        wanted = [sent_bytes(count, own) for own in _held_bytes(shares, len(lines))]
        bound_s = max(own * 8 / min(line) for own, line in zip(wanted, lines, strict=True))
        rows[name], found = _judged(name, taken, wanted, bound_s, steps(count, count), shares)
        goals += found
    return rows, goals


SECTIONS: dict[str, Callable[[], Section]] = {
    "ring": rings,
    "five rings": five_rings,
    "grid": grids,
    "ten thousand": ten_thousand,
}


def _one_by_one(cases: Iterable[tuple[int, int, int]]) -> Section:
    """Of (members, columns, bytes) each."""
    rows: dict[str, Any] = {}
    goals = []
    for members, columns, size_bytes in cases:
        shape = partial(ways, columns=columns)
        share = Share(size_bytes, _chunks(size_bytes, shape(members)), range(members), shape)
        taken = average_all([Line(RATE_BPS, RATE_BPS)] * members, [share], LATENCY_S)
        name = f"C = {members}" + (f", {columns} columns" if columns < members else "")
        wanted = [sent_bytes(members, size_bytes)] * members
        bound_s, hops = wanted[0] * 8 / RATE_BPS, steps(members, columns)
        rows[name], found = _judged(name, taken, wanted, bound_s, hops, [share])
        goals += found
    return rows, goals


def _judged(
    name: str,
    taken: Sequence[Taken],
    wanted_bytes: Sequence[float],
    bound_s: float,
    hops: int,
    shares: Sequence[Share],
) -> tuple[dict[str, float], list[Goal]]:
    """One averaging's row, and whether it is as the formulas say."""
    mean_s, formula_s = max(its.mean_s for its in taken), bound_s + hops * LATENCY_S
    bytes_off = max(abs(its.bytes_sent / own - 1) for its, own in zip(taken, wanted_bytes, strict=True))
    sums = max(its.sums_bytes / own for its, own in zip(taken, _held_bytes(shares, len(taken)), strict=True))
    underway = [min(s.chunks, WINDOW * len(s.members)) * s.size_bytes / s.chunks for s in shares]
    kept = max(
        its.sums_bytes / sum(size for size, share in zip(underway, shares, strict=True) if n in share.members)
        for n, its in enumerate(taken)
    )
    found = max(its.hops for its in taken)
    row = {
        "steps": found,
        "most bytes sent": float(max(its.bytes_sent for its in taken)),
        "bytes off by": bytes_off,
        "s": mean_s,
        "formula s": formula_s,
        "bound s": bound_s,
        "all know s": max(its.seconds for its in taken),
        "vector and sums / own": 1 + sums,
        "sums and means, MB": max(its.stored_bytes for its in taken) / 1e6,
    }
    goals = [
        Goal(f"steps off, {name}", abs(found - hops), "", "<= 0"),
        Goal(f"bytes off, {name}", bytes_off, "", "<= 0.02"),
        Goal(f"time off, {name}", abs(mean_s / formula_s - 1), "", "<= 0.1"),
        Goal(f"sums / chunks underway, {name}", kept, "", "<= 1"),
    ]
    if hops * LATENCY_S < 0.1 * bound_s:
        goals.append(Goal(f"time / bound, {name}", mean_s / bound_s, "", "<= 1.1"))
    return row, goals


def _cut_differently() -> list[Share]:
    """The segments of `CUTS`; peers are numbered by cluster and stage."""
    ends = [(0, *cuts, len(LAYERS_BYTES)) for cuts in CUTS]
    found = segments(
        [ClusterPlan(tuple(StageAssignment(PeerId(""), *its, 0) for its in pairwise(end)), 1) for end in ends]
    )
    peers = sorted({member for segment in found for member in segment.members})
    shares = []
    for segment in found:
        size_bytes = round(sum(LAYERS_BYTES[segment.lo : segment.hi]))
        members = [peers.index(member) for member in segment.members]
        shares.append(Share(size_bytes, _chunks(size_bytes, ways(len(members), 1)), members))
    return shares


def _held_bytes(shares: Sequence[Share], peers: int) -> list[float]:
    """That each peer holds of all segments."""
    return [sum(share.size_bytes for share in shares if peer in share.members) for peer in range(peers)]


def _chunks(size_bytes: int, shape: Ways) -> int:
    return chunk_count(size_bytes // ELEMENT_BYTES, shape.count)
