"""Vivaldi coordinates: convergence, hostile remotes."""

from __future__ import annotations

import math
import random
from itertools import combinations, permutations

import pytest

from ravnest_p2p.core.coordinates import MAX_STEP_S, checked, initial, predicted_rtt_s, update
from ravnest_p2p.core.errors import RecordFormatError
from ravnest_p2p.core.types import Coordinate


def test_peers_learn_where_they_are() -> None:
    draw = random.Random(1).uniform
    places = {str(n): (draw(0, 0.1), draw(0, 0.1), draw(0.001, 0.02)) for n in range(20)}

    def true_rtt_s(x: str, y: str) -> float:
        (ax, ay, ah), (bx, by, bh) = places[x], places[y]
        return math.hypot(ax - bx, ay - by) + ah + bh

    known = {name: initial() for name in places}
    for _ in range(100):
        for x, y in permutations(places, 2):
            known[x] = update(known[x], known[y], true_rtt_s(x, y), tie=x + y)
    errors = [
        abs(predicted_rtt_s(known[x], known[y]) / true_rtt_s(x, y) - 1) for x, y in combinations(places, 2)
    ]
    assert sum(errors) / len(errors) < 0.05
    assert max(coordinate.error for coordinate in known.values()) < 0.1


def test_two_strangers_part() -> None:
    moved = update(initial(), initial(), 0.1, tie="ab")
    assert moved.vector != initial().vector
    assert moved == update(initial(), initial(), 0.1, tie="ab")
    assert moved != update(initial(), initial(), 0.1, tie="ac")


@pytest.mark.parametrize(
    "bad",
    [
        Coordinate((0.0,), 0.0, 1.0),
        Coordinate((0.0, 0.0, 0.0), 0.0, 1.0),
        Coordinate((float("nan"), 0.0), 0.0, 1.0),
        Coordinate((1e9, 0.0), 0.0, 1.0),
        Coordinate((0.0, 0.0), -0.1, 1.0),
        Coordinate((0.0, 0.0), float("inf"), 1.0),
        Coordinate((0.0, 0.0), 0.0, 0.0),
        Coordinate((0.0, 0.0), 0.0, -1.0),
        Coordinate((0.0, 0.0), 0.0, float("nan")),
    ],
)
def test_hostile_coordinates_are_refused(bad: Coordinate) -> None:
    with pytest.raises(RecordFormatError):
        checked(bad)
    with pytest.raises(RecordFormatError):
        update(initial(), bad, 0.1, tie="ab")


def test_liar_moves_us_by_one_bounded_step() -> None:
    sure = Coordinate((10.0, 10.0), 5.0, 1e-9)
    moved = update(initial(), sure, 1e9, tie="ab")
    assert math.dist(moved.vector, initial().vector) <= MAX_STEP_S
    assert checked(moved) == moved


def test_own_measurement_must_be_a_number() -> None:
    with pytest.raises(ValueError, match="NaN"):
        update(initial(), initial(), float("nan"), tie="ab")
