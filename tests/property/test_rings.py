"""A whole ring in float32: every member ends with the same bits, near the true weighted mean."""

from __future__ import annotations

import itertools
import math
import random
import struct
from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st

from ravnest_p2p.core.rings import (
    Accumulate,
    Finished,
    Replace,
    RingRound,
    SendChunk,
    chunk_bounds,
    normalised,
    segments,
)
from ravnest_p2p.core.types import ClusterPlan, PeerId, StageAssignment


def float32(x: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", x))[0])


def bits(values: list[float]) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def run_ring(
    vectors: list[list[float]], weights: list[float], rng: random.Random
) -> tuple[list[list[float]], int]:
    """Run all members, messages arriving in any order that links allow; also the most elements one sent."""
    size = len(vectors)
    rings = [RingRound(rank, size, weights) for rank in range(size)]
    bounds = chunk_bounds(len(vectors[0]), size)
    buffers = [
        list(v) if ring.unchanged else [float32(x * ring.scale) if ring.scale else 0.0 for x in v]
        for v, ring in zip(vectors, rings, strict=True)
    ]
    links: list[deque[tuple[int, int, list[float]]]] = [deque() for _ in range(size)]
    sent = [0] * size

    def carry_out(rank: int, actions: list, data: list[float]) -> None:  # type: ignore[type-arg]
        for action in actions:
            if isinstance(action, Finished):
                continue
            start, stop = bounds[action.chunk]
            if isinstance(action, SendChunk):
                sent[rank] += stop - start
                links[rings[rank].next_rank].append((action.step, action.chunk, buffers[rank][start:stop]))
            elif isinstance(action, Accumulate):
                own = buffers[rank][start:stop]
                buffers[rank][start:stop] = [float32(a + b) for a, b in zip(own, data, strict=True)]
            elif isinstance(action, Replace):
                buffers[rank][start:stop] = data

    waiting = list(range(size))
    started: set[int] = set()
    while True:
        ready = waiting + [r for r in started if links[r]]
        if not ready:
            break
        rank = rng.choice(ready)
        if rank in waiting:
            waiting.remove(rank)
            started.add(rank)
            carry_out(rank, rings[rank].start(), [])
        else:
            step, chunk, data = links[rank].popleft()
            carry_out(rank, rings[rank].chunk_received(step, chunk), data)
    assert all(ring.finished for ring in rings)
    return buffers, max(sent)


values = st.floats(-1e6, 1e6, width=32)


@st.composite
def rings(draw: st.DrawFn) -> tuple[list[list[float]], list[float]]:
    size, elements = draw(st.integers(1, 6)), draw(st.integers(0, 13))
    vectors = [draw(st.lists(values, min_size=elements, max_size=elements)) for _ in range(size)]
    weights = draw(st.lists(st.sampled_from([0.0, 1.0, 3.0, 64.0]), min_size=size, max_size=size))
    return vectors, weights


@settings(max_examples=200, deadline=None)
@given(rings(), st.integers(0, 1 << 30))
def test_all_members_end_with_the_same_weighted_mean(
    ring: tuple[list[list[float]], list[float]], seed: int
) -> None:
    vectors, weights = ring
    size, elements = len(vectors), len(vectors[0])
    results, sent = run_ring(vectors, weights, random.Random(seed))
    if size == 1 or not any(weights):
        assert results == vectors
        assert sent == 0
        return
    assert len({bits(result) for result in results}) == 1
    shares = normalised(weights)
    for place in range(elements):
        terms = [w * v[place] for w, v in zip(shares, vectors, strict=True)]
        assert abs(results[0][place] - math.fsum(terms)) <= 1e-6 * math.fsum(map(abs, terms)) + 1e-30
    assert sent <= 2 * (size - 1) * math.ceil(elements / size)


@given(rings(), st.integers(0, 1 << 30))
def test_the_result_does_not_depend_on_timing(ring: tuple[list[list[float]], list[float]], seed: int) -> None:
    vectors, weights = ring
    one, _ = run_ring(vectors, weights, random.Random(0))
    other, _ = run_ring(vectors, weights, random.Random(seed))
    assert list(map(bits, one)) == list(map(bits, other))


def test_what_was_not_trained_may_be_anything() -> None:
    results, _ = run_ring([[1.5, -2.0], [math.nan, math.inf]], [4, 0], random.Random(0))
    assert results == [[1.5, -2.0], [1.5, -2.0]]


@given(st.lists(st.sets(st.integers(1, 19), max_size=6), min_size=1, max_size=5))
def test_segments_cover_each_layer_once_with_one_holder_of_each_cluster(cuts: list[set[int]]) -> None:
    plans = []
    for inner in cuts:
        places = [0, *sorted(inner), 20]
        stages = [StageAssignment(PeerId("p"), a, b, 0) for a, b in itertools.pairwise(places)]
        plans.append(ClusterPlan(tuple(stages), 1))
    found = segments(plans)
    assert [layer for s in found for layer in range(s.lo, s.hi)] == list(range(20))
    assert len(found) == len(set().union(*cuts)) + 1
    for segment in found:
        assert [member.cluster for member in segment.members] == list(range(len(plans)))
        for member in segment.members:
            stage = plans[member.cluster].stages[member.stage]
            assert stage.lo <= segment.lo
            assert segment.hi <= stage.hi


@given(st.integers(0, 1000), st.integers(1, 40))
def test_chunks_cover_the_segment_evenly(elements: int, size: int) -> None:
    bounds = chunk_bounds(elements, size)
    assert [place for start, stop in bounds for place in range(start, stop)] == list(range(elements))
    lengths = [stop - start for start, stop in bounds]
    assert len(bounds) == size
    assert max(lengths) - min(lengths) <= 1
