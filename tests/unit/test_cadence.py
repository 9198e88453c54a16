"""Which rounds are averaged where κ is found while training."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravnest_p2p.core.cadence import Cadence, Due
from ravnest_p2p.core.errors import OurFault
from ravnest_p2p.core.kappa import Kappa, KappaSpec, Seen

LEAST = 5
CLOSE, COSTLY = Seen(1e-6, 100.0, 1.0), Seen(10.0, 100.0, 1.0)


def cadence(rounds: int = 100) -> Cadence:
    return Cadence(Kappa(KappaSpec(least=LEAST, factor=2.0)), LEAST, rounds)


def averaged(its: Cadence, rounds: int, seen: list[Seen]) -> list[int]:
    found, told = [], iter(seen)
    for number in range(rounds):
        while its.undecided(number) is not None:
            its.ended(next(told, CLOSE))
        if its.due(number) is not None:
            found.append(number)
    return found


def test_rounds_become_rarer_as_clusters_stay_close() -> None:
    assert averaged(cadence(), 40, [CLOSE] * 10) == [0, 1, 3, 7, 15, 31]
    assert averaged(cadence(), 40, [CLOSE, COSTLY, COSTLY, CLOSE]) == [0, 1, 3, 4, 5, 7, 11, 19, 35]


def test_a_round_says_which_ones_it_stands_for() -> None:
    its = cadence()
    its.ended(CLOSE)
    assert its.due(0) == Due(0, 0)
    assert its.due(2) is None
    assert its.due(3) == Due(3, 2)


def test_the_last_round_is_averaged_whatever_is_due() -> None:
    its = cadence(rounds=3)
    its.ended(CLOSE)
    assert its.due(2) == Due(2, 2)
    assert cadence(rounds=3).due(2) == Due(2, 2), "whatever is not decided yet"


def test_what_is_not_decided_is_said() -> None:
    its = cadence()
    assert its.undecided(1) is None
    assert its.undecided(2) == 0
    with pytest.raises(OurFault, match="round 2"):
        its.due(2)
    its.ended(CLOSE)
    assert its.undecided(3) is None
    assert its.undecided(4) == 1


@given(st.lists(st.builds(Seen, st.floats(0, 1), st.floats(0, 100), st.floats(0, 10)), max_size=60))
def test_every_round_is_averaged_by_the_next_due_one(seen: list[Seen]) -> None:
    its, rounds, told, next_first = cadence(60), 60, iter(seen), 0
    for number in range(rounds):
        while (ended := its.undecided(number)) is not None:
            assert ended < number - 1, "decided by a round before the one that was averaged last"
            its.ended(next(told, CLOSE))
        due = its.due(number)
        if due is not None:
            assert due == Due(number, next_first)
            next_first = number + 1
    assert next_first == rounds
