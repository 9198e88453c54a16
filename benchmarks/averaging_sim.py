"""Do steps, bytes, time and memory follow the formulas? `python -m benchmarks.averaging --sim`, two minutes.

The product's state machine runs for each holder of each segment in virtual time; figures are exact and the
same on every machine, but for the seconds of `ten thousand`. For C members who hold S bytes each:

    steps   hops of the longest way of a chunk, there and back: 2(C−1) in a ring,
            2(rows−1 + columns−1) in a grid
    bytes   2(C−1)/C · S that each sends, in rings and in grids
    time    bytes / rate + steps · latency until the last mean is there. Ways begin at all members, so nobody
            waits for the first chunk to come by. Where several chunks take each way, they fill the waiting
            of others, and the latency counts for less. The mean's way there and back again, twice the
            steps in all, and everybody knows that all have it
    bound   max over the peers of 2(C−1)/C · S / B: B the slower direction of the peer's line, S over all
            its segments
    memory  the vector that is gathered, one copy of S, in which means are kept too; and the sums that wait
            for others or for the line, at most as many as chunks are underway: eight for each member

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

from benchmarks.common import Goal
from ravnest_p2p.core.planning.instance import parse_problem
from ravnest_p2p.core.planning.layout import Cluster
from ravnest_p2p.core.planning.search.ring_order import ring_order
from ravnest_p2p.core.rings import Hop, Ways, segments, ways
from ravnest_p2p.core.rings.ways import WINDOW
from ravnest_p2p.core.types import ClusterPlan, PeerId, StageAssignment
from ravnest_p2p.testing.planning_problems import instance
from ravnest_p2p.testing.rings_timed import Line, Share, Taken, average_all
from ravnest_p2p.training.averaging import CHUNK_BYTES, ELEMENT_BYTES, chunk_count

RATE_BPS = 100e6
LATENCY_S = 0.02
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
MANY, SAMPLE = 10_000, 10
Section = tuple[dict[str, Any], list[Goal]]


def steps(members: int, columns: int) -> int:
    """Hops of the longest way; a grid with one or two longer rows may take one fewer."""
    rows = -(-members // columns)
    return 2 * (-(-members // rows) - 1 + rows - 1)


def sent_bytes(members: int, size_bytes: float) -> float:
    return 2 * (members - 1) / members * size_bytes


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


def ten_thousand() -> Section:
    """Rings of 10,000 clusters of a peer each, planned; then what they take."""
    problem = parse_problem(instance("gpt350m", MANY, seed=1))
    begun_s = time.process_time()
    _, columns = ring_order(problem, [Cluster((peer,), ()) for peer in range(MANY)])
    planned_s = time.process_time() - begun_s
    shape = partial(ways, columns=columns)
    size_bytes = shape(MANY).count * CHUNK_BYTES
    wanted_steps, wanted = steps(MANY, columns), sent_bytes(MANY, size_bytes)
    share = Share(SAMPLE * CHUNK_BYTES, SAMPLE, range(MANY), lambda size: _Some(shape(size)))
    taken = average_all([Line(RATE_BPS, RATE_BPS)] * MANY, [share], LATENCY_S)
    hops, mean_s = max(its.hops for its in taken), max(its.mean_s for its in taken)
    way_s = wanted_steps * (LATENCY_S + CHUNK_BYTES * 8 / RATE_BPS)
    name = f"{MANY} in {columns} columns"
    row = {
        "planned in s": planned_s,
        "steps": hops,
        "steps in one ring": steps(MANY, MANY),
        f"s of {SAMPLE} chunks": mean_s,
        "formula s of these": way_s,
        "formula bytes": wanted,
        "formula s": wanted * 8 / RATE_BPS + wanted_steps * LATENCY_S,
    }
    return {name: row}, [
        Goal(f"seconds to plan, {name}", planned_s, "s", "<= 30"),
        Goal(f"steps off, {name}", abs(hops - wanted_steps), "", "<= 0"),
        Goal(f"time off, {SAMPLE} chunks, {name}", abs(mean_s / way_s - 1), "", "<= 0.1"),
    ]


SECTIONS: dict[str, Callable[[], Section]] = {
    "ring": rings,
    "five rings": five_rings,
    "grid": grids,
    "ten thousand": ten_thousand,
}


class _Some:
    """A few ways of many, evenly spread."""

    def __init__(self, all_of_them: Ways) -> None:
        self._all = all_of_them
        self.count = SAMPLE
        self.branch = all_of_them.branch
        self.window = all_of_them.window

    def hop(self, way: int, place: int) -> Hop:
        return self._all.hop(way * (self._all.count // SAMPLE), place)

    def completed_by(self, place: int) -> int:
        raise NotImplementedError("nobody dies here")


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
