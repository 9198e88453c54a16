"""Averaging on links of given rates: as fast as the slowest allows, and as few bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from benchmarks import averaging_sim
from benchmarks.averaging_formulas import Section, steps
from ravnest_p2p.core.rings import Ways, ways
from ravnest_p2p.testing.rings_timed import Line, Share, average, average_all

SIZE_BYTES = 64_000_000


@pytest.mark.parametrize(
    ("rates", "latency_s", "most"),
    [
        ([1e8, 1e8], 0.0, 1.005),
        ([1e8] * 3, 0.0, 1.005),
        ([1e8] * 4, 0.0, 1.005),
        ([5e7, 2e8, 1e8, 1.5e8], 0.0, 1.02),
        ([1e8] * 4, 0.04, 1.05),
        ([1e8] * 8, 0.02, 1.05),
    ],
)
def test_the_slowest_link_is_always_busy(rates: Sequence[float], latency_s: float, most: float) -> None:
    count = len(rates)
    taken = average(SIZE_BYTES, count * -(-SIZE_BYTES // (count << 18)), rates, latency_s)
    share = 2 * (count - 1) / count * SIZE_BYTES
    assert max(its.bytes_sent for its in taken) <= 1.001 * share
    assert max(its.seconds for its in taken) <= most * share * 8 / min(rates)
    most_bytes = 8 * count << 18
    assert max(its.stored_bytes for its in taken) <= most_bytes, "it does not grow with the segment"


def test_a_grid_of_many_clusters_takes_a_way_of_rows_and_columns() -> None:
    count, columns, latency_s = 64, 8, 0.05

    def grid(size: int) -> Ways:
        return ways(size, columns)

    size_bytes = 1_000_000
    taken = average(size_bytes, count, [1e9] * count, latency_s, grid)
    flat = average(size_bytes, count, [1e9] * count, latency_s)
    assert max(its.bytes_sent for its in taken) <= 2.5 * size_bytes
    # What all know of all takes the way of a mean twice more.
    assert max(its.seconds for its in taken) <= 1.2 * 2 * 2 * (columns - 1 + columns - 1) * latency_s
    assert max(its.seconds for its in flat) >= 4 * max(its.seconds for its in taken)


def test_rings_that_share_a_line_take_what_its_peer_has_to_send() -> None:
    """Two segments, of which the slow peer holds both, and the others one each."""
    shares = [Share(8_000_000, 40, (0, 1)), Share(2_000_000, 10, (0, 2))]
    slow, fast, narrow_down = Line(1e7, 1e8), Line(1e8, 1e8), Line(1e8, 2e7)
    taken = average_all([slow, fast, narrow_down], shares)
    assert [its.bytes_sent for its in taken] == pytest.approx([10e6, 8e6, 2e6], rel=0.001)
    assert [its.hops for its in taken] == [2, 2, 2]
    # Its line takes a chunk of each in turn: the smaller one is through when as much of the other is.
    assert taken[1].mean_s == pytest.approx(8.0, rel=0.02)
    assert taken[2].mean_s == pytest.approx(3.2, rel=0.1)


def test_rows_of_a_grid_that_differ_in_length_take_no_longer() -> None:
    members, columns = 60, 8
    chunks = ways(members, columns).count

    def grid(size: int) -> Ways:
        return ways(size, columns)

    taken = average(chunks << 18, chunks, [1e8] * members, 0.01, grid)
    share = 2 * (members - 1) / members * (chunks << 18)
    assert max(its.hops for its in taken) == steps(members, columns)
    assert [its.bytes_sent for its in taken] == pytest.approx([share] * members, rel=0.02)
    assert max(its.mean_s for its in taken) <= 1.1 * share * 8 / 1e8
    assert max(its.sums_bytes for its in taken) <= 0.2 * (chunks << 18), "means lie in the vector itself"


@pytest.mark.parametrize("section", [averaging_sim.rings, averaging_sim.five_rings])
def test_the_benchmark_finds_the_formulas(section: Callable[[], Section]) -> None:
    _, goals = section()
    assert [goal for goal in goals if not goal.holds] == []
