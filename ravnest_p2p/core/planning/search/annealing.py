"""Simulated annealing over ordered clusters: compiled.

Proposals that make a plan worse are accepted too, ever fewer as it cools. Moves are counted, not seconds, and
chance is a seed's, so that every machine finds the same plan. -ln u of a random u comes from a short table of
rounded numbers, for mathematical libraries differ in their last digit.

Source: Kirkpatrick, Gelatt and Vecchi, Science 220 (1983).
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from ravnest_p2p.core.planning.search.kernels import ANY, ROUGH, cluster_value
from ravnest_p2p.core.planning.search.moves import Proposal, accept, judge, propose
from ravnest_p2p.core.planning.search.state import ACTIVE, State, draw
from ravnest_p2p.core.planning.search.tables import Floats, Ints, Tables

STEPS = 256
"""Into which the cooling is divided."""

_QUANTILES = 1 << 12
LOSSES = np.array([round(-math.log((n + 0.5) / _QUANTILES), 9) for n in range(_QUANTILES)])
"""Quantiles of an exponential distribution of mean 1."""

ALIKE = 16
"""Partners that a peer has for exchanges of what is alike."""

REGION = 1.0
"""How unlike peers of two regions are, in doublings of speed, line or memory."""


def cooling(hot: float, cold: float) -> float:
    """Factor of each of `STEPS` steps from one temperature to the other."""
    return round(math.pow(cold / hot, 1.0 / STEPS), 12)


@njit(cache=True, nogil=True)
def anneal(
    t: Tables,
    state: State,
    p: Proposal,
    alike: Ints,
    losses: Floats,
    transfer_s: float,
    moves: int,
    hot: float,
    factor: float,
) -> None:
    """Change the state by so many proposals.

    Args:
        alike: (N, K), each peer's K most alike.
        losses: `LOSSES`.
        transfer_s: Q, see `kernels`.
        hot: temperature at the start, in the unit of values; 0 accepts nothing that is worse.
        factor: see `cooling`.
    """
    step = max(1, moves // STEPS)
    temperature = hot
    for move in range(moves):
        if move % step == step - 1:
            temperature *= factor
        propose(t, state, p, alike, transfer_s)
        if p.counts[0] + p.counts[1] == 0:
            continue
        if judge(t, state, p, transfer_s, -temperature * losses[draw(state, losses.size)]):
            accept(state, p)


@njit(cache=True, nogil=True)
def most_alike(t: Tables, columns: Ints, region: float, count: int) -> Ints:
    """(N, count), for each peer those others that differ least, nearest first; by index where they tie."""
    peers = t.peers.shape[0]
    found = np.zeros((peers, count), np.int64)
    distances = np.empty(peers)
    for i in range(peers):
        for j in range(peers):
            distances[j] = 0.0 if t.regions[i] == t.regions[j] else region
            for column in columns:
                distances[j] += abs(t.peers[i, column] - t.peers[j, column])
        distances[i] = np.inf
        found[i] = np.argsort(distances, kind="mergesort")[:count]
    return found


@njit(cache=True, nogil=True)
def revalue(t: Tables, state: State, p: Proposal, transfer_s: float) -> None:
    """Value all clusters for another Q."""
    state.total[0] = 0.0
    for k in range(state.counts[ACTIVE]):
        slot = state.active[k]
        state.values[slot] = cluster_value(
            t, state.members[slot], state.sizes[slot], transfer_s, ANY, ROUGH, p.cuts, p.best, p.back
        )
        state.total[0] += state.values[slot]
