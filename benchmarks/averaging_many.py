"""Section `ten thousand` of `averaging_sim`: that many clusters are planned in seconds, as a grid.

To simulate all chunks would take hours and tens of GB: each is sent 20,000 times, and a segment has at least
one chunk for each way. So all 10,000 members run, and ten chunks on ways far apart from one another; what the
formulas say of all chunks is reported without being simulated.
"""

from __future__ import annotations

import time
from functools import partial

from benchmarks.averaging_formulas import LATENCY_S, RATE_BPS, Section, sent_bytes, steps
from benchmarks.common import Goal
from ravnest_p2p.core.planning.instance import parse_problem
from ravnest_p2p.core.planning.layout import Cluster
from ravnest_p2p.core.planning.search.ring_order import ring_order
from ravnest_p2p.core.rings import Hop, Ways, ways
from ravnest_p2p.testing.planning_problems import instance
from ravnest_p2p.testing.rings_timed import Line, Share, average_all
from ravnest_p2p.training.averaging import CHUNK_BYTES

MANY, SAMPLE = 10_000, 10


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
