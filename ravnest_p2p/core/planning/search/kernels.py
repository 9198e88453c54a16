"""What a cluster of peers in a given order is worth, with the best cuts: compiled.

An averaging's slowest transfer Q is a bound on each stage's bytes: for a given Q, clusters do not depend on
one another. Most of what a search asks about is worth less than it needs, and most of that is seen from
bounds.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from ravnest_p2p.core.planning.search.intervals import best_interval, bound_s, cut_with_fewest_moves
from ravnest_p2p.core.planning.search.tables import (
    DOWN,
    EPOCH,
    FAILS,
    FREE_MOVES,
    HELD,
    LEAST_STAGES,
    LOG_FLOPS,
    LOG_LINE,
    MICROBATCH,
    MOVE,
    RECOVER,
    SLOWEST,
    SPREAD_DISCOUNT,
    STAGE_DISCOUNT,
    STAY,
    WITH_HOST,
    Floats,
    Ints,
    Tables,
)

NEAR, ROUGH = 1e-4, 2e-3
"""How well an interval is known where its bisection ends, relative: in a plan, and while one is searched."""

LONGER = (1.0, 1.05, 1.12, 1.25, 1.5)
"""Intervals in times of the least, with which a cluster is tried where moves have a price."""

ANY = 0.0
"""Least value of a cluster that is wanted whatever it is worth."""

_SLACK = 1.0 + 1e-9


@njit(cache=True)
def cluster_value(
    t: Tables,
    order: Ints,
    stages: int,
    transfer_s: float,
    least: float,
    near: float,
    cuts: Ints,
    best: Floats,
    back: Ints,
) -> float:
    """Worth of the cluster without standbys, as `objective.Worth.value`.

    0 where nothing fits, or where it is worth less than `least`.

    Args:
        order: peers, of which the first `stages` count.
        transfer_s: Q, longest that a stage's bytes may take in an averaging.
        near: how well the interval has to be known, relative.
        cuts: (stages + 1,) or longer; becomes where the stages begin, and L.
        best, back: (stages + 1, L + 1) or larger, to work in.
    """
    if not _may_hold(t, order, stages):
        return 0.0
    discount = discounted(t, order, stages)
    most_s = t.rules[SLOWEST] * _SLACK
    if least > 0.0:
        most_s = min(most_s, t.rules[MICROBATCH] * discount / least)
    least_s = bound_s(t, order, stages)
    if least_s > most_s:
        return 0.0
    interval_s = best_interval(t, order, stages, transfer_s, least_s, most_s, near, cuts, best, back)
    if interval_s > most_s:
        return 0.0
    value = _value(t, order, stages, interval_s, discount, cuts)
    if t.rules[STAY] > 0.0:
        value = _with_fewer_moves(
            t, order, stages, transfer_s, interval_s, most_s, value, discount, cuts, best, back
        )
    return value if value >= least else 0.0


@njit(cache=True)
def _value(t: Tables, order: Ints, stages: int, interval_s: float, discount: float, cuts: Ints) -> float:
    """Worth of a cluster that is cut so, less the price of stages that move."""
    value = t.rules[MICROBATCH] / interval_s * discount * moving(t, order, stages, cuts)
    if t.rules[STAY] > 0.0:
        for s in range(stages):
            if t.held[order[s], 0] > cuts[s] or t.held[order[s], 1] < cuts[s + 1]:
                value -= t.rules[STAY]
    return value


@njit(cache=True)
def _with_fewer_moves(
    t: Tables,
    order: Ints,
    stages: int,
    transfer_s: float,
    least_s: float,
    most_s: float,
    value: float,
    discount: float,
    cuts: Ints,
    best: Floats,
    back: Ints,
) -> float:
    """Worth where some longer intervals, with fewer moves, are tried; `cuts`, good for `value`, change."""
    chosen = 0.0
    for longer in LONGER:
        bound = min(longer * least_s, most_s)
        interval_s = cut_with_fewest_moves(t, order, stages, transfer_s, bound, cuts, best, back)
        if interval_s <= most_s:
            other = _value(t, order, stages, interval_s, discount, cuts)
            if other >= value:
                chosen, value = bound, other
    if chosen > 0.0:
        cut_with_fewest_moves(t, order, stages, transfer_s, chosen, cuts, best, back)
    else:
        best_interval(t, order, stages, transfer_s, 0.0, least_s * _SLACK, NEAR, cuts, best, back)
    return value


@njit(cache=True)
def most_worth(t: Tables, order: Ints, stages: int) -> float:
    """No cluster of these peers in this order is worth more."""
    if not _may_hold(t, order, stages):
        return 0.0
    return t.rules[MICROBATCH] / bound_s(t, order, stages) * discounted(t, order, stages)


@njit(cache=True)
def _may_hold(t: Tables, order: Ints, stages: int) -> bool:
    """Whether the number of stages is allowed, and all memory together suffices."""
    if stages < t.rules[LEAST_STAGES] or stages >= t.layers.shape[0]:
        return False
    memory = 0.0
    for s in range(stages):
        memory += t.peers[order[s], WITH_HOST]
    return memory >= t.layers[t.layers.shape[0] - 1, HELD]


@njit(cache=True)
def value_of_cuts(t: Tables, order: Ints, stages: int, cuts: Ints, interval_s: float) -> float:
    """Worth of a cluster that is cut so; 0 where its interval is longer than the rules allow."""
    if interval_s > t.rules[SLOWEST] * _SLACK:
        return 0.0
    return t.rules[MICROBATCH] / interval_s * discounted(t, order, stages) * moving(t, order, stages, cuts)


@njit(cache=True)
def moving(t: Tables, order: Ints, stages: int, cuts: Ints) -> float:
    """Share of the epoch that is left when all have fetched what they did not hold."""
    if t.rules[FREE_MOVES] != 0.0:
        return 1.0
    fetch_s = 0.0
    for s in range(stages):
        i = order[s]
        lo, hi = cuts[s], cuts[s + 1]
        new = t.layers[hi, MOVE] - t.layers[lo, MOVE]
        kept_lo, kept_hi = max(lo, t.held[i, 0]), min(hi, t.held[i, 1])
        if kept_hi > kept_lo:
            new -= t.layers[kept_hi, MOVE] - t.layers[kept_lo, MOVE]
        fetch_s = max(fetch_s, new / t.peers[i, DOWN])
    return max(0.0, 1.0 - fetch_s / t.rules[EPOCH])


@njit(cache=True)
def discounted(t: Tables, order: Ints, stages: int) -> float:
    """What is left of a cluster's rate by how many, how unlike and how unreliable its peers are."""
    rules = t.rules
    mean_line = mean_flops = loss = 0.0
    for s in range(stages):
        i = order[s]
        mean_line += t.peers[i, LOG_LINE]
        mean_flops += t.peers[i, LOG_FLOPS]
        loss += t.peers[i, FAILS] * rules[RECOVER]
    mean_line /= stages
    mean_flops /= stages
    by_line = by_flops = 0.0
    for s in range(stages):
        i = order[s]
        by_line += (t.peers[i, LOG_LINE] - mean_line) ** 2
        by_flops += (t.peers[i, LOG_FLOPS] - mean_flops) ** 2
    spread = math.sqrt(by_line / stages) + math.sqrt(by_flops / stages)
    stages_discount = 1.0 + rules[STAGE_DISCOUNT] * (stages - 1)
    return 1.0 / (stages_discount * (1.0 + rules[SPREAD_DISCOUNT] * spread) * (1.0 + loss))


def workspace(t: Tables, most_stages: int) -> tuple[Ints, Floats, Ints]:
    """`cuts`, `best` and `back` of `cluster_value` for clusters of up to so many stages."""
    rows, columns = most_stages + 2, t.layers.shape[0]
    return np.zeros(rows, np.int64), np.empty((rows, columns)), np.zeros((rows, columns), np.int64)
