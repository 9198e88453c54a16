"""Adaptive κ: small while clusters go apart fast, growing as they do not, never beyond what is set."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravnest_p2p.core.errors import NonFiniteError, OurFault
from ravnest_p2p.core.kappa import (
    COST,
    DISTANCE,
    FACTOR,
    LEAST,
    MOST,
    SPREAD,
    Kappa,
    KappaSpec,
    Seen,
    apart,
    per_cluster,
)

SPEC = KappaSpec(least=4, most=200, apart=0.05, cost=0.1, factor=2.0)
SLOW = Seen(0.05, round_s=1e6, update_s=1.0)


def trained(kappa: Kappa, rounds: int, rate: float, round_s: float = 1e6) -> list[int]:
    """κ of so many rounds in which clusters go apart by `rate` in the least κ, and with κ^SPREAD."""
    found = []
    for _ in range(rounds):
        found.append(kappa.current.kappa)
        kappa.ended(Seen(rate * (found[-1] / SPEC.least) ** SPREAD, round_s, 1.0))
    return found


def test_it_comes_to_the_distance_that_is_set_and_stays() -> None:
    found = trained(Kappa(SPEC), 12, rate=0.05 / 8**0.5)
    assert found[:5] == [4, 4, 8, 16, 32]
    assert set(found[5:]) <= {32, 33}
    assert trained(Kappa(SPEC, start=100), 12, rate=0.05 / 8**0.5)[2:4] == [50, 32]


def test_it_grows_as_clusters_go_apart_more_slowly() -> None:
    kappa = Kappa(SPEC)
    found = [trained(kappa, 8, rate)[-1] for rate in (0.04, 0.02, 0.01)]
    assert found == [7, 25, 100]


def test_it_is_ready_for_the_learning_rate_to_come() -> None:
    rate = lambda update: 1.0 if update < 40 else 0.5  # noqa: E731
    kappa, found = Kappa(SPEC, rate), []
    while sum(found) < 120:
        found.append(kappa.current.kappa)
        mean = sum(map(rate, range(sum(found) - found[-1], sum(found)))) / found[-1]
        kappa.ended(SLOW._replace(apart=0.05 / 2**0.5 * mean * (found[-1] / 4) ** SPREAD))
    assert found == [4, 4, 8, 8, 8, 8, 16, 32, 32]


def test_rounds_that_cost_little_are_made_often() -> None:
    kappa = Kappa(SPEC)
    assert trained(kappa, 12, rate=1e-6, round_s=2.0)[-1] == 20
    assert kappa.following.limit == COST
    assert "rounds take 9.1 % of the time, of 10 %" in kappa.following.why


def test_a_decision_says_what_it_was_limited_by() -> None:
    kappa = Kappa(SPEC)
    assert kappa.ended(SLOW._replace(apart=0.06)).limit == LEAST
    kappa = Kappa(SPEC, start=64)
    decision = kappa.ended(SLOW._replace(apart=0.12))
    assert (decision.limit, decision.kappa) == (DISTANCE, 45)
    assert decision.expected == pytest.approx(0.12 / 8)
    assert decision.seen == SLOW._replace(apart=0.12)
    assert "κ 64 → 45 by distance: after 64 updates clusters were 12 % apart" in decision.why
    assert kappa.ended(SLOW._replace(apart=0.0)).limit == FACTOR
    assert Kappa(SPEC, start=150).ended(SLOW._replace(apart=0.0)).limit == MOST


def test_the_numbers_of_a_round_decide_on_the_one_after_the_next() -> None:
    kappa = Kappa(SPEC, start=40)
    decision = kappa.ended(SLOW._replace(apart=0.2))
    assert decision.kappa == 20
    assert (kappa.current.kappa, kappa.following) == (40, decision)
    kappa.ended(SLOW._replace(apart=0.2))
    assert kappa.current == decision


numbers = st.floats(0, 1e6)


@given(st.lists(st.tuples(numbers, numbers, numbers), max_size=30), st.integers(1, 500))
def test_it_stays_in_its_bounds_and_changes_by_its_factor(seen: list[tuple[float, ...]], start: int) -> None:
    first, second = Kappa(SPEC, start=start), Kappa(SPEC, start=start)
    for each in seen:
        before = first.following.kappa
        decision = first.ended(Seen(*each))
        assert decision == second.ended(Seen(*each))
        assert SPEC.least <= decision.kappa <= SPEC.most
        assert before / SPEC.factor <= decision.kappa <= before * SPEC.factor


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize("place", range(3))
def test_what_no_round_can_show_is_refused(bad: float, place: int) -> None:
    kappa, seen = Kappa(SPEC), [0.1, 1.0, 1.0]
    seen[place] = bad
    with pytest.raises(NonFiniteError):
        kappa.ended(Seen(*seen))
    assert kappa.following.seen is None


def test_misuse_is_our_fault() -> None:
    for spec in (
        SPEC._replace(least=0),
        SPEC._replace(most=3),
        SPEC._replace(apart=0.0),
        SPEC._replace(cost=-1.0),
        SPEC._replace(factor=1.0),
    ):
        with pytest.raises(OurFault):
            Kappa(spec)


@pytest.mark.parametrize("clusters", [2, 4, 40])
def test_how_far_apart_clusters_are_follows_from_sums_of_squares(clusters: int) -> None:
    chance = np.random.default_rng(clusters)
    common, learned = chance.normal(size=50_000), 0.1 * chance.normal(size=(clusters, 50_000))
    shares = [1 / clusters] * clusters
    mean = learned.mean(0)
    found = apart(float(np.square(learned).sum() / clusters), mean @ mean, common @ common, shares)
    assert found == pytest.approx(0.1, rel=0.02), "the same for any number of clusters"
    assert apart(1.0, 1.0 + 1e-12, 1.0, shares) == 0.0
    assert apart(1.0, 0.0, 1.0, [1.0]) == apart(1.0, 0.0, 0.0, shares) == 0.0


def test_clusters_keep_the_ratio_of_their_speeds() -> None:
    assert per_cluster(30, (10, 10)) == (30, 30)
    assert per_cluster(30, (5, 15, 10)) == (15, 45, 30)
    assert per_cluster(1, (1, 9)) == (1, 2)
