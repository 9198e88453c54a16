"""Which codec crosses a link: sizes, the choice by measured speeds, and the two measurements."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravnest_p2p.core import compression
from ravnest_p2p.core.compression import CODECS, LADDER, allowed, choose, encoded_bytes
from ravnest_p2p.core.pipeline.schedule import Backward, Forward, Step
from ravnest_p2p.core.planning.cost import planning_table
from ravnest_p2p.core.types import LayerCost
from ravnest_p2p.daemon.worker import pace
from tests.unit.planning_cases import spec

BOUNDARY = 4 * 512 * 768
SIZES = tuple(encoded_bytes(name, BOUNDARY) for name in LADDER)

speeds = st.floats(1e3, 1e12)
times = st.floats(1e-5, 1e4)
sizes = st.lists(st.integers(1, 10**10), min_size=len(LADDER), max_size=len(LADDER))


def fits(size: int, bps: float, compute_s: float) -> bool:
    return 8 * size <= compression.FULL * compute_s * bps


def test_sizes_of_a_boundary_of_gpt2() -> None:
    exact = encoded_bytes("none", BOUNDARY)
    ratios = {name: exact / encoded_bytes(name, BOUNDARY) for name in CODECS}
    assert ratios["bf16"] == 2
    assert 1.99 < ratios["fp16"] < 2
    assert ratios["int8"] >= 3.9
    assert ratios["int4"] >= 7.5


@pytest.mark.parametrize("name", CODECS[1:])
def test_nothing_that_is_encoded_grows(name: str) -> None:
    least = compression.LEAST_BYTES // 4
    assert all(encoded_bytes(name, n) < 4 * n for n in range(least, 8 * least))


def test_exact_frames_are_always_allowed() -> None:
    assert all(allowed(setting)[0] == "none" for setting in compression.COMPRESSIONS)
    assert allowed("int8") == ("none", "int8")
    assert allowed("none") == ("none",)
    assert allowed("auto") == LADDER


@given(sizes, speeds, times)
def test_the_weakest_that_fits_is_taken(frames: list[int], bps: float, compute_s: float) -> None:
    taken = LADDER.index(choose(LADDER, frames, bps, compute_s))
    if fits(frames[taken], bps, compute_s):
        assert not any(fits(size, bps, compute_s) for size in frames[:taken])
    else:
        assert frames[taken] == min(frames)
        assert not any(fits(size, bps, compute_s) for size in frames)


@given(speeds, speeds, times, times)
def test_more_speed_or_time_never_compresses_more(a: float, b: float, s: float, t: float) -> None:
    slow = LADDER.index(choose(LADDER, SIZES, min(a, b), min(s, t)))
    assert LADDER.index(choose(LADDER, SIZES, max(a, b), max(s, t))) <= slow


def test_nothing_is_compressed_before_anything_was_measured() -> None:
    assert choose(LADDER, SIZES, math.inf, 1.0) == "none"
    assert choose(LADDER, SIZES, 1e3, 0.0) == "none"
    assert choose(("none", "int8"), SIZES[::2], 1e3, 1.0) == "int8"


def test_a_rate_is_what_the_last_frames_took() -> None:
    link: Any = SimpleNamespace(bytes_sent=0, write_s=0.0)
    rate = pace.LinkRate(link)
    assert rate.bps == math.inf
    for seconds in (8.0, *[0.5] * pace.FRAMES_KEPT):
        link.bytes_sent += 1_000_000
        link.write_s += seconds
        found = rate.bps
    assert found == pytest.approx(16e6)


def test_time_of_computing_follows_what_is_measured() -> None:
    compute = pace.ComputeTime()
    forward, backward = Forward(0, 0, speculative=False), Backward(0, 0)
    compute.took(forward, 1.0)
    compute.took(Step(0), 50.0)
    assert compute.seconds == 0.0
    compute.took(backward, 2.0)
    assert compute.seconds == pytest.approx(3.0)
    for _ in range(50):
        compute.took(forward, 2.0)
        compute.took(backward, 4.0)
    assert compute.seconds == pytest.approx(6.0, rel=0.01)


def test_plans_count_what_is_sent() -> None:
    layers = tuple(LayerCost(1e9, 1 << 20, 1 << 20, 4 << 20, 1 << 20) for _ in range(4))
    found = {
        name: planning_table(replace(spec(4), layers=layers, compression=name)).cut_bytes(2)
        for name in compression.COMPRESSIONS
    }
    assert found["none"] == 4 << 20
    exact, encoded = 1 << 20, 3 << 20
    assert found["int8"] == exact + math.ceil(encoded * 258 / 1024)
    assert found["auto"] == found["int4"] < exact + encoded / 7.5
    assert found["fp16"] == pytest.approx(found["bf16"], rel=1e-5)
