"""Averaging in any order of messages, with any deaths: the rest end with the same bits, a weighted mean."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ravnest_p2p.core.rings import Outcome, Star, Ways, chunk_bounds, segments, ways
from ravnest_p2p.core.types import ClusterPlan, PeerId, StageAssignment
from ravnest_p2p.testing.rings_sim import RingsSim, run

MOST = 7
"""Members."""


@st.composite
def sims(
    draw: st.DrawFn, deaths: bool = True
) -> tuple[Callable[[int], RingsSim], dict[int, list[tuple[int, int]]]]:
    """A segment's averaging by its seed, and who dies when."""
    size = draw(st.integers(1, MOST))
    columns, window = draw(st.integers(0, size)), draw(st.integers(1, 4))
    chunks = draw(st.integers(1, 12))
    elements = draw(st.integers(chunks, 30))
    weights = draw(st.lists(st.sampled_from([0.0, 1.0, 3.0, 64.0]), min_size=size, max_size=size))
    own = np.random.default_rng(draw(st.integers(0, 99))).normal(size=(size, elements))

    def shape(members: int) -> Ways:
        return ways(members, columns) if columns else Star(members)

    moments = st.dictionaries(st.integers(0, 80), st.lists(st.integers(0, size - 1), max_size=2), max_size=2)
    dying = draw(moments) if deaths else {}
    return (
        lambda seed: RingsSim(own, weights, chunks, seed=seed, ways=shape, window=window),
        {moment: [(0, rank) for rank in ranks] for moment, ranks in dying.items()},
    )


seeds = st.integers(0, 1 << 30)


@settings(max_examples=400, deadline=None)
@given(sims(), seeds)
def test_whoever_dies_the_rest_end_with_one_weighted_mean(drawn: Any, seed: int) -> None:
    make, deaths = drawn
    sim = make(seed)
    run([sim], deaths)
    sim.check()


@settings(deadline=None)
@given(sims(deaths=False), seeds)
def test_the_result_does_not_depend_on_timing(drawn: Any, seed: int) -> None:
    make, _ = drawn
    results = []
    for sim in (make(0), make(seed)):
        run([sim], {})
        results += [member.numbers.result().tobytes() for member in sim.members]
        sim.check()
    if sim.members[0].round.outcome is Outcome.MEAN:
        assert len(set(results)) == 1


@given(st.lists(st.sets(st.integers(1, 19), max_size=6), min_size=1, max_size=5), st.randoms())
def test_segments_cover_each_layer_once_with_one_holder_of_each_cluster(
    cuts: list[set[int]], chance: Random
) -> None:
    plans = []
    for inner in cuts:
        places = [0, *sorted(inner), 20]
        stages = [StageAssignment(PeerId("p"), a, b, 0) for a, b in itertools.pairwise(places)]
        plans.append(ClusterPlan(tuple(stages), 1))
    order = chance.sample(range(len(plans)), len(plans))
    found = segments(plans, order)
    assert [layer for s in found for layer in range(s.lo, s.hi)] == list(range(20))
    assert len(found) == len(set().union(*cuts)) + 1
    for segment in found:
        assert [member.cluster for member in segment.members] == order
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
