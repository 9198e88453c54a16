"""Averaging on links of given rates: as fast as the slowest allows, and as few bytes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ravnest_p2p.core.rings import Ways, ways
from ravnest_p2p.testing.rings_timed import average

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
        return ways(size, min(size, columns))

    size_bytes = 1_000_000
    taken = average(size_bytes, count, [1e9] * count, latency_s, grid)
    flat = average(size_bytes, count, [1e9] * count, latency_s)
    assert max(its.bytes_sent for its in taken) <= 2.5 * size_bytes
    # What all know of all takes the way of a mean twice more.
    assert max(its.seconds for its in taken) <= 1.2 * 2 * 2 * (columns - 1 + columns - 1) * latency_s
    assert max(its.seconds for its in flat) >= 4 * max(its.seconds for its in taken)
