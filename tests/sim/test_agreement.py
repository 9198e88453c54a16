"""Members that end with different results, simulated: all find it out in the round, and who it may be."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from ravnest_p2p.core.rings import Dispute, Outcome, Ring, Star, Ways, ways
from ravnest_p2p.testing.rings_sim import Numbers, RingsSim, Values, run

SHAPES: list[Callable[[int], Ways]] = [Ring, Star, partial(ways, columns=2)]
LIAR = 1


class Alters(Numbers):
    """Hands on other means than it was given, and says that it holds what it was given."""

    def hold(self, chunk: int, mean: Values) -> Values:
        return super().hold(chunk, mean) + 1.0


class Keeps(Numbers):
    """Hands on what it was given, and goes on from something else: its memory fails."""

    def hold(self, chunk: int, mean: Values) -> Values:
        super().hold(chunk, mean)
        self.mean[chunk] = mean + 1.0
        return mean


class KeepsOne(Keeps):
    """The same in one chunk, whose mean it hands on."""

    def hold(self, chunk: int, mean: Values) -> Values:
        return super().hold(chunk, mean) if chunk == LIAR else Numbers.hold(self, chunk, mean)


def sim_of(
    kind: type[Numbers], size: int, shape: Callable[[int], Ways], seed: int = 0, chunks: int = 12
) -> RingsSim:
    own = np.random.default_rng(seed).normal(size=(size, 24))
    return RingsSim(
        own,
        [1.0] * size,
        chunks,
        seed=seed,
        ways=shape,
        numbers=lambda rank, row, parts: (kind if rank == LIAR else Numbers)(row, parts),
    )


def disputes(sim: RingsSim) -> list[Dispute | None]:
    assert all(sim.members[rank].left for rank in sim.survivors())
    return [sim.members[rank].agreed.dispute for rank in sim.survivors()]


@pytest.mark.parametrize("kind", [Alters, Keeps, KeepsOne])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [2, 3, 4, 7])
def test_everybody_finds_a_difference_and_suspects_who_made_it(
    size: int, shape: Callable[[int], Ways], kind: type[Numbers]
) -> None:
    for seed in range(5):
        sim = sim_of(kind, size, shape, seed)
        run([sim], {}, seed)
        found = disputes(sim)
        assert len(set(found)) == 1, "all judge alike"
        assert found[0] is not None
        assert LIAR in found[0].suspects
        assert len(found[0].suspects) <= 2, "it, and at most one who cannot be told from it"


@pytest.mark.parametrize("kind", [Keeps, KeepsOne])
@pytest.mark.parametrize("size", [3, 4, 7])
def test_in_a_ring_of_three_or_more_failing_memory_is_named_alone(size: int, kind: type[Numbers]) -> None:
    sim = sim_of(kind, size, Ring)
    run([sim], {})
    assert set(disputes(sim)) == {Dispute(differ=(LIAR,), suspects=(LIAR,))}


def test_who_makes_others_differ_is_suspected_though_most_agree_with_it() -> None:
    """It tells the digest of what it was given; its victim alone differs, and is not blamed alone."""
    sim = sim_of(Alters, 3, Ring, chunks=2)
    run([sim], {})
    assert set(disputes(sim)) == {Dispute(differ=(2,), suspects=(LIAR, 2))}


def test_of_two_nobody_can_be_blamed() -> None:
    for kind in (Alters, Keeps):
        sim = sim_of(kind, 2, Ring)
        run([sim], {})
        assert {found and found.suspects for found in disputes(sim)} == {(0, 1)}


@pytest.mark.parametrize("shape", SHAPES)
def test_whoever_dies_at_any_moment_a_difference_that_is_left_is_found(shape: Callable[[int], Ways]) -> None:
    whole = sim_of(Alters, 4, shape)
    end = run([whole], {})
    for moment, dead in itertools.product(range(end + 1), (0, LIAR, 3)):
        sim = sim_of(Alters, 4, shape, seed=moment)
        run([sim], {moment: [(0, dead)]}, moment)
        found = disputes(sim)
        results = {sim.members[rank].numbers.result().tobytes() for rank in sim.survivors()}
        assert {sim.members[rank].agreed.outcome for rank in sim.survivors()} == {Outcome.MEAN}
        if len(results) > 1:
            assert None not in found
        elif dead != LIAR:
            assert set(found) == {None}
        # Else those whom the liar told its result before it died may find that it differed from theirs.
