"""Means that liars cannot move, and how far a mean may be from what a member brought."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ravnest_p2p.core.errors import NonFiniteError, OurFault, OutOfBoundsError
from ravnest_p2p.core.rings import Outcome, Ring, SegmentRound, Star, shares_before
from ravnest_p2p.core.robust import CLIPPED, MEAN, MEANS, TRIMMED, withstands
from ravnest_p2p.testing.averaged_sim import exchange
from ravnest_p2p.training import averaging
from ravnest_p2p.training.bounds import FIRST_ROUNDS, MeanBound
from ravnest_p2p.training.robust import RobustMean, RobustValues, mean

HUGE = np.float32(3e38)


def chunk(*values: float) -> averaging.Chunk:
    return np.array(values, np.float32)


def test_how_many_liars_each_withstands() -> None:
    assert [withstands(TRIMMED, n) for n in (1, 2, 3, 4, 7, 8, 16)] == [0, 0, 1, 1, 1, 2, 4]
    assert [withstands(CLIPPED, n) for n in (1, 2, 3, 4, 7, 8, 16)] == [0, 0, 1, 1, 3, 3, 7]
    assert [withstands(MEAN, n) for n in (1, 2, 3, 16)] == [0, 0, 0, 0]


def test_trimmed_is_the_mean_by_samples_of_what_is_between_the_extremes() -> None:
    values = [chunk(1, 40), chunk(2, 30), chunk(4, 20), chunk(90, -90)]
    np.testing.assert_allclose(mean(values, [1, 1, 3, 1], TRIMMED), [3.5, 22.5], rtol=1e-6)


def test_clipped_cuts_what_is_further_from_the_median_than_twice_the_median_distance() -> None:
    values = [chunk(-1), chunk(0), chunk(1), chunk(0.5), chunk(1000)]
    # The centre is 0.5, distances are 1.5, 0.5, 0.5, 0 and 999.5, and 1 counts at most.
    assert mean(values, [1] * 5, CLIPPED).tolist() == pytest.approx([0.5 + (-1 - 0.5 + 0.5 + 0 + 1) / 5])


@pytest.mark.parametrize("means", MEANS)
def test_one_or_two_members_have_the_mean_by_samples(means: str) -> None:
    assert mean([chunk(1, 2)], [7], means).tolist() == [1, 2]
    np.testing.assert_allclose(mean([chunk(1, 2), chunk(5, 6)], [3, 1], means), [2, 3])


@pytest.mark.parametrize("means", [TRIMMED, CLIPPED])
def test_values_at_the_end_of_the_range_do_no_harm(means: str) -> None:
    for liar in (HUGE, -HUGE):
        found = mean([chunk(liar, -liar), chunk(1, 1), chunk(2, 2), chunk(3, 3)], [97, 1, 1, 1], means)
        assert np.isfinite(found).all()
        assert (abs(found - 2) < 5).all()


def rounds(
    means: str, flats: list[torch.Tensor], weights: list[float], ways: type[Ring] | type[Star] = Star
) -> list[SegmentRound[averaging.Chunk]]:
    found: list[SegmentRound[averaging.Chunk]] = []
    for rank, flat in enumerate(flats):
        values = RobustValues(
            flat, 6, RobustMean(means, lambda rank=rank: shares_before(rank, weights, found[rank].live))
        )
        found.append(SegmentRound(rank, weights, 6, values, ways))
    return found


@pytest.mark.parametrize("means", MEANS)
def test_a_round_ends_with_the_mean_of_what_all_brought(means: str) -> None:
    weights = [1.0, 0.0, 2.0, 3.0, 1.0]
    own = np.random.default_rng(1).normal(size=(5, 40)).astype(np.float32)
    flats = [torch.from_numpy(row.copy()) for row in own]
    members = rounds(means, flats, weights)
    exchange(members)
    assert {one.outcome for one in members} == {Outcome.MEAN}
    assert len({flat.numpy().tobytes() for flat in flats}) == 1
    trained = [n for n, weight in enumerate(weights) if weight]
    wanted = [
        mean([own[n][lo:hi] for n in trained], [weights[n] for n in trained], means)
        for lo, hi in averaging.chunk_bounds(40, 6)
    ]
    np.testing.assert_allclose(flats[0].numpy(), np.concatenate(wanted), rtol=1e-5, atol=1e-6)


def test_a_ring_has_no_single_parts_to_compare() -> None:
    with pytest.raises(OurFault, match="of 3 members"):
        exchange(rounds(TRIMMED, [torch.zeros(12) for _ in range(3)], [1.0] * 3, Ring))


def test_a_part_that_is_not_finite_is_refused() -> None:
    values = RobustValues(torch.zeros(2), 1, RobustMean(TRIMMED, lambda: [0.5, 0.5]))
    with pytest.raises(NonFiniteError):
        values.add(0, 0.5, [chunk(float("nan"), 1)])


def shown(*apart: float) -> MeanBound:
    bound = MeanBound()
    for one in apart:
        bound.begin()
        bound.check(0, chunk(1, 1), chunk(1 + one, 1 - one))
        bound.commit()
    return bound


def test_a_mean_may_be_as_far_as_earlier_rounds_let_expect() -> None:
    bound = shown(*[0.01] * FIRST_ROUNDS)
    bound.check(0, chunk(1, 1), chunk(1.09, 0.91))
    for far in (0.2, 1e30, 3e38):
        with pytest.raises(OutOfBoundsError, match="chunk 3"):
            bound.check(3, chunk(1, 1), chunk(1 + far, 1))


def test_before_the_first_rounds_there_is_no_bound_and_small_changes_are_never_refused() -> None:
    shown(*[0.01] * (FIRST_ROUNDS - 1)).check(0, chunk(1, 1), chunk(9, 9))
    bound = shown(*[0.0] * FIRST_ROUNDS)
    bound.check(0, chunk(1, 1), chunk(1.0009, 1))
    with pytest.raises(OutOfBoundsError):
        bound.check(0, chunk(1, 1), chunk(1.01, 1))


def test_a_round_that_failed_shows_nothing() -> None:
    bound = shown(*[0.01] * FIRST_ROUNDS)
    bound.check(0, chunk(1, 1), chunk(1.09, 1.09))
    bound.begin()
    bound.commit()
    with pytest.raises(OutOfBoundsError):
        bound.check(0, chunk(1, 1), chunk(1.5, 1))


def test_values_that_are_refused_change_nothing() -> None:
    flat = torch.ones(4)
    values = averaging.SegmentValues(flat, 1, shown(*[0.01] * FIRST_ROUNDS))
    with pytest.raises(OutOfBoundsError):
        values.hold(0, chunk(1, 1, 1, 1e30))
    assert flat.tolist() == [1, 1, 1, 1]
    values.hold(0, chunk(1, 1, 1, 1.05))
    assert flat[3] == np.float32(1.05)


def test_a_distance_that_is_not_finite_is_not_what_is_usual() -> None:
    bound, own = MeanBound(), np.ones(8, np.float32)
    for found in (np.full(8, 3e38, np.float32), own * np.float32(1.01)):
        bound.begin()
        bound.check(0, own, found)
        bound.commit()
    assert np.isfinite(bound.spread)
    with pytest.raises(OutOfBoundsError):
        bound.check(0, own, np.full(8, 1e6, np.float32))
