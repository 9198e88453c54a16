"""Robust means: whatever a few liars bring the result stays by the others; whoever dies, it is one mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ravnest_p2p.core.rings import Star, shares_before
from ravnest_p2p.core.robust import CLIPPED, MEAN, MEANS, TRIMMED, withstands
from ravnest_p2p.testing.rings_sim import Numbers, RingsSim, Values, run
from ravnest_p2p.training.robust import SLACK, mean

LARGEST = float(np.finfo(np.float32).max)
anything = st.one_of(
    st.floats(-LARGEST, LARGEST, width=32), st.sampled_from([LARGEST, -LARGEST, 1e30, 1e-30, 0.0])
)
samples = st.sampled_from([1.0, 3.0, 64.0, 1e6])


@st.composite
def attacked(draw: st.DrawFn, means: str) -> tuple[list[Values], list[Values], list[float]]:
    """Honest ones' values, those of as many liars as are withstood, or fewer, and everybody's samples."""
    size, length = draw(st.integers(3, 9)), draw(st.integers(1, 5))
    liars = draw(st.integers(0, withstands(means, size)))
    honest = draw(arrays(np.float32, (size - liars, length), elements=st.floats(-10, 10, width=32)))
    lies = draw(arrays(np.float32, (liars, length), elements=anything))
    return [*honest], [*lies], draw(st.lists(samples, min_size=size, max_size=size))


def mixed(honest: Sequence[Any], lies: Sequence[Any], chance: Any) -> list[Any]:
    found = [*honest, *lies]
    chance.shuffle(found)
    return found


@settings(max_examples=400, deadline=None)
@given(attacked(TRIMMED), st.randoms())
def test_trimmed_stays_between_what_honest_members_brought(drawn: Any, chance: Any) -> None:
    honest, lies, shares = drawn
    found = mean(mixed(honest, lies, chance), shares, TRIMMED)
    assert (np.min(honest, axis=0) <= found).all()
    assert (found <= np.max(honest, axis=0)).all()


@settings(max_examples=400, deadline=None)
@given(attacked(CLIPPED), st.randoms())
def test_clipped_stays_within_twice_the_honest_members_distance(drawn: Any, chance: Any) -> None:
    honest, lies, shares = drawn
    values = mixed(honest, lies, chance)
    found = mean(values, shares, CLIPPED).astype(np.float64)
    centre = np.median(np.array(values, np.float64), axis=0)
    assert (np.min(honest, axis=0) - 1e-5 <= centre).all()
    assert (centre <= np.max(honest, axis=0) + 1e-5).all()
    furthest = max(float(np.linalg.norm(one - centre)) for one in honest)
    assert np.linalg.norm(found - centre) <= SLACK * furthest * 1.001 + 1e-4


@settings(deadline=None)
@given(st.integers(3, 12), st.integers(0, 1 << 30))
def test_of_honest_members_each_is_about_as_good_as_the_mean(size: int, seed: int) -> None:
    """Each brings the truth and noise of its own."""
    chance = np.random.default_rng(seed)
    shares = chance.integers(1, 4, size).astype(float).tolist()
    values = [*chance.normal(size=(size, 4096)).astype(np.float32)]
    plain = mean(values, shares, MEAN)
    np.testing.assert_allclose(plain, np.average(values, axis=0, weights=shares), atol=1e-5)
    np.testing.assert_allclose(mean(values, shares, CLIPPED), plain, atol=1e-4)
    assert np.linalg.norm(mean(values, shares, TRIMMED)) <= 1.3 * np.linalg.norm(plain)


class Robust(Numbers):
    """The product's means in a simulated round."""

    def __init__(self, own: Values, chunks: int, means: str, shares: Callable[[], list[float]]) -> None:
        super().__init__(own, chunks)
        self._means, self._shares = means, shares

    def part(self, chunk: int, share: float) -> Values:
        return super().part(chunk, 1.0 if share else 0.0)

    def add(self, chunk: int, share: float, sums: Sequence[Values]) -> Values:
        if not sums:
            return self.part(chunk, share)
        parts = [*sums, self.part(chunk, share)]
        counted = [pair for pair in zip(parts, self._shares(), strict=True) if pair[1]]
        found = mean(*zip(*counted, strict=True), self._means)
        return found.astype(np.float64)


class RobustSim(RingsSim):
    """A segment's averaging by one of the means."""

    def __init__(self, own: Values, weights: Sequence[float], chunks: int, means: str, seed: int) -> None:
        self._means = means

        def numbers(rank: int, row: Values, parts: int) -> Numbers:
            return Robust(
                row, parts, means, lambda: shares_before(rank, weights, self.members[rank].round.live)
            )

        super().__init__(own, weights, chunks, seed=seed, ways=Star, numbers=numbers)

    def _mean(self, ranks: Sequence[int]) -> Values:
        counted = [rank for rank in ranks if self.weights[rank]] or list(ranks)
        shares = [self.weights[rank] or 1.0 for rank in counted]
        chunks = [self._part(counted, shares, lo, hi) for lo, hi in self.bounds]
        return np.concatenate(chunks)

    def _part(self, ranks: Sequence[int], shares: Sequence[float], lo: int, hi: int) -> Values:
        return mean([self.own[rank, lo:hi] for rank in ranks], shares, self._means).astype(np.float64)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(MEANS),
    st.lists(st.sampled_from([0.0, 1.0, 3.0]), min_size=1, max_size=6),
    st.dictionaries(st.integers(0, 60), st.integers(0, 5), max_size=2),
    st.integers(1, 8),
    st.integers(0, 1 << 30),
)
def test_whoever_dies_in_a_robust_round_the_rest_end_with_one_mean_or_what_they_had(
    means: str, weights: list[float], deaths: dict[int, int], chunks: int, seed: int
) -> None:
    own = np.random.default_rng(seed).normal(size=(len(weights), 16)).astype(np.float32).astype(np.float64)
    sim = RobustSim(own, weights, chunks, means, seed)
    run([sim], {moment: [(0, rank % len(weights))] for moment, rank in deaths.items()}, seed)
    sim.check()
