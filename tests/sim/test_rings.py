"""Averaging in simulation: whoever dies at whatever moment, the rest end with one mean."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

from ravnest_p2p.core.rings import Member, Outcome, Segment, Star, segments, ways
from ravnest_p2p.core.types import ClusterPlan, PeerId, StageAssignment
from ravnest_p2p.testing.rings_sim import RingsSim, run


def cluster(*cuts: int) -> ClusterPlan:
    stages = [StageAssignment(PeerId("p"), lo, hi, 0) for lo, hi in itertools.pairwise(cuts)]
    return ClusterPlan(tuple(stages), 1)


UNEQUAL = segments([cluster(0, 5), cluster(0, 2, 5), cluster(0, 1, 4, 5), cluster(0, 3, 5)])
"""Five segments of four clusters."""

PEERS = sorted({member for segment in UNEQUAL for member in segment.members})
CHUNKS, ELEMENTS = 8, 24
STAR = 0
"""In the place of a grid's columns."""
WEIGHTS = (1, 2, 0, 4)


def swarm(seed: int, columns: int = 4) -> list[RingsSim]:
    own = np.random.default_rng(seed).normal(size=(len(UNEQUAL), 4, ELEMENTS))
    shape = Star if columns == STAR else lambda size: ways(size, columns)
    return [RingsSim(values, WEIGHTS, CHUNKS, seed=seed + n, ways=shape) for n, values in enumerate(own)]


def places(peer: Member, found: Sequence[Segment] = UNEQUAL) -> list[tuple[int, int]]:
    """(segment, rank) of a peer."""
    return [(n, segment.members.index(peer)) for n, segment in enumerate(found) if peer in segment.members]


def check(sims: Sequence[RingsSim]) -> None:
    for sim in sims:
        sim.check()


def dies(moments: dict[Member, int], seed: int = 0, columns: int = 4) -> None:
    sims = swarm(seed, columns)
    deaths: dict[int, list[tuple[int, int]]] = {}
    for peer, moment in moments.items():
        deaths.setdefault(moment, []).extend(places(peer))
    run(sims, deaths, seed)
    check(sims)


def length(columns: int = 4) -> int:
    """Messages where nobody dies."""
    sims = swarm(0, columns)
    delivered = run(sims, {})
    check(sims)
    assert all(member.round.outcome is Outcome.MEAN for sim in sims for member in sim.members)
    return delivered


@pytest.mark.parametrize("columns", [4, STAR])
def test_five_rings_of_four_clusters_average_and_send_no_more_than_they_have_to(columns: int) -> None:
    sims = swarm(0, columns)
    run(sims, {})
    check(sims)
    for sim in sims:
        assert [member.elements_sent for member in sim.members] == [2 * 3 * ELEMENTS // 4] * 4


@pytest.mark.parametrize("columns", [4, 2, STAR])
def test_each_member_dies_at_some_moments(columns: int) -> None:
    for number, moment in enumerate(range(0, length(columns) + 1, 2)):
        dies({PEERS[number % len(PEERS)]: moment}, moment, columns)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("columns", [4, 2, STAR])
def test_each_member_dies_at_each_moment(columns: int) -> None:
    for moment, peer in itertools.product(range(length(columns) + 1), PEERS):
        dies({peer: moment}, moment, columns)


@pytest.mark.parametrize(("members", "chunks"), [(2, 256), (4, 256), (16, 512)])
def test_what_a_member_keeps_for_others_does_not_grow_with_the_segment(members: int, chunks: int) -> None:
    own = np.random.default_rng(1).normal(size=(members, chunks))
    sim = RingsSim(own, [1.0] * members, chunks, window=4)
    run([sim], {})
    sim.check()
    assert max(member.stored for member in sim.members) <= 24 + 8 * members


STEPS = 6
"""Of a ring of four: 2 (C - 1)."""


def test_any_two_members_die_at_any_two_steps() -> None:
    step = length() / STEPS
    for one, other in itertools.combinations(PEERS, 2):
        for first, second in itertools.product(range(STEPS), repeat=2):
            dies({one: round(first * step), other: round(second * step)}, first)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("columns", [4, 2, STAR])
def test_any_two_members_die_at_any_two_moments(columns: int) -> None:
    """On all cores."""
    pairs = list(itertools.combinations(PEERS, 2))
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        list(pool.map(both_die, pairs, [columns] * len(pairs)))


def both_die(pair: tuple[Member, Member], columns: int) -> None:
    """At every eighth moment each."""
    one, other = pair
    end = length(columns)
    for first, second in itertools.product(range(0, end, 8), repeat=2):
        dies({one: first, other: second}, first * end + second, columns)
