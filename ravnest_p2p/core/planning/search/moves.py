"""Changes that may make a plan better: compiled.

A proposal names up to two clusters that it takes apart and up to three that it makes of their members and of
idle peers, each in pipeline order. What is worth nothing is not made, and whoever is left over is idle.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from ravnest_p2p.core.planning.search.intervals import NEVER
from ravnest_p2p.core.planning.search.kernels import ANY, ROUGH, cluster_value, most_worth
from ravnest_p2p.core.planning.search.state import ACTIVE, IDLE, NEW, OLD, State, chance, dissolve, draw, form
from ravnest_p2p.core.planning.search.tables import (
    LOG_FLOPS,
    LOG_LINE,
    LOG_MEMORY,
    MOST_CLUSTERS,
    Floats,
    Ints,
    Tables,
)

ASKED = 40
"""Candidates for a new cluster, at most: more make it slower, and hardly better."""

ALIKE, NEAR_ENOUGH = 0.7, 0.5
"""Share of the partners that are alike rather than any; what chance adds to a peer's distance."""

SWAP, INSERT, DROP, REORDER = 50, 70, 78, 96
"""Of a hundred proposals, those below the first are swaps, and so on; the rest takes clusters apart."""

UNKNOWN = -1.0
"""Value of a cluster that is yet to be judged."""


class Proposal(NamedTuple):
    """Scratch for one proposal and for judging it.

    Attributes:
        old: (OLD,) slots to take apart.
        orders: (NEW, M), sizes, values, bounds: (NEW,) of the clusters to make.
        counts: (2,), how many of both.
        pool: (N,) peers to choose from.
    """

    old: Ints
    orders: Ints
    sizes: Ints
    values: Floats
    bounds: Floats
    counts: Ints
    pool: Ints
    cuts: Ints
    best: Floats
    back: Ints


@njit(cache=True)
def propose(t: Tables, state: State, p: Proposal, alike: Ints, transfer_s: float) -> None:
    """One random proposal; none where it would make no sense."""
    p.counts[0] = p.counts[1] = 0
    kind = draw(state, 100)
    if kind >= REORDER or state.counts[ACTIVE] == 0:
        _rebuild(t, state, p, alike, transfer_s)
        return
    a = state.active[draw(state, state.counts[ACTIVE])]
    if kind < SWAP:
        _swap(state, p, alike, a)
    elif kind < INSERT:
        _insert(state, p, alike, a)
    elif kind < DROP:
        _drop(state, p, a)
    else:
        _reorder(state, p, a)


@njit(cache=True)
def _take_apart(state: State, p: Proposal, slot: int) -> int:
    """Copies a cluster into the proposal; returns its place there."""
    n, at = p.counts[0], p.counts[1]
    p.old[n] = slot
    p.sizes[at], p.values[at] = state.sizes[slot], UNKNOWN
    p.orders[at, : state.sizes[slot]] = state.members[slot, : state.sizes[slot]]
    p.counts[0] = n + 1
    p.counts[1] = at + 1
    return at


@njit(cache=True)
def _partner(state: State, alike: Ints, peer: int) -> int:
    if chance(state) < ALIKE:
        return alike[peer, draw(state, alike.shape[1])]
    return draw(state, state.slot_of.size)


@njit(cache=True)
def _swap(state: State, p: Proposal, alike: Ints, a: int) -> None:
    at = draw(state, state.sizes[a])
    peer = state.members[a, at]
    other = _partner(state, alike, peer)
    b = state.slot_of[other]
    if b == a:
        return
    p.orders[_take_apart(state, p, a), at] = other
    if b >= 0:
        place = _take_apart(state, p, b)
        for s in range(p.sizes[place]):
            if p.orders[place, s] == other:
                p.orders[place, s] = peer


@njit(cache=True)
def _insert(state: State, p: Proposal, alike: Ints, a: int) -> None:
    size = state.sizes[a]
    if size == state.members.shape[1]:
        return
    if state.counts[IDLE] > 0 and draw(state, 2) == 0:
        peer = state.idle[draw(state, state.counts[IDLE])]
    else:
        peer = _partner(state, alike, state.members[a, draw(state, size)])
    b = state.slot_of[peer]
    if b == a:
        return
    place, at = _take_apart(state, p, a), draw(state, size + 1)
    for s in range(size, at, -1):
        p.orders[place, s] = p.orders[place, s - 1]
    p.orders[place, at] = peer
    p.sizes[place] = size + 1
    if b >= 0:
        place = _take_apart(state, p, b)
        _remove(p, place, peer)


@njit(cache=True)
def _remove(p: Proposal, place: int, peer: int) -> None:
    kept = 0
    for s in range(p.sizes[place]):
        if p.orders[place, s] != peer:
            p.orders[place, kept] = p.orders[place, s]
            kept += 1
    p.sizes[place] = kept


@njit(cache=True)
def _drop(state: State, p: Proposal, a: int) -> None:
    if state.sizes[a] > 1:
        _remove(p, _take_apart(state, p, a), state.members[a, draw(state, state.sizes[a])])


@njit(cache=True)
def _reorder(state: State, p: Proposal, a: int) -> None:
    """Two peers change places, or a stretch runs the other way."""
    size = state.sizes[a]
    first, last = draw(state, size), draw(state, size)
    if first == last:
        return
    place = _take_apart(state, p, a)
    if draw(state, 2) == 0:
        p.orders[place, first] = state.members[a, last]
        p.orders[place, last] = state.members[a, first]
    else:
        first, last = min(first, last), max(first, last)
        for s in range(first, last + 1):
            p.orders[place, s] = state.members[a, first + last - s]


@njit(cache=True)
def _rebuild(t: Tables, state: State, p: Proposal, alike: Ints, transfer_s: float) -> None:
    """Take up to two neighbouring clusters apart, and make new ones of their members and of idle peers."""
    apart = min(draw(state, OLD + 1), state.counts[ACTIVE])
    members = 0
    for n in range(apart):
        if n == 0:
            slot = state.active[draw(state, state.counts[ACTIVE])]
        else:
            first = p.old[0]
            near = alike[state.members[first, draw(state, state.sizes[first])], draw(state, alike.shape[1])]
            slot = state.slot_of[near]
            if slot < 0 or slot == first:
                break
        p.old[n] = slot
        p.counts[0] = n + 1
        for s in range(state.sizes[slot]):
            p.pool[members] = state.members[slot, s]
            members += 1
    left = _with_idle(state, p, members)
    room = min(NEW, int(t.rules[MOST_CLUSTERS]) - (state.counts[ACTIVE] - p.counts[0]))
    while p.counts[1] < room and left > 0:
        left = _gather(t, state, p, left, transfer_s)
        if p.values[p.counts[1]] <= 0.0:
            break
        p.counts[1] += 1
    if p.counts[1] == 0:
        p.counts[0] = 0


@njit(cache=True)
def _with_idle(state: State, p: Proposal, members: int) -> int:
    """Adds idle peers, some of them where they are many, to the pool; returns its size."""
    count = state.counts[IDLE]
    wanted = min(count, max(0, ASKED - members))
    for k in range(wanted):
        # A partial shuffle of the list itself, whose order means nothing.
        other = k + draw(state, count - k)
        a, b = state.idle[k], state.idle[other]
        state.idle[k], state.idle[other] = b, a
        state.idle_at[b], state.idle_at[a] = k, other
        p.pool[members + k] = b
    return members + wanted


@njit(cache=True)
def _gather(t: Tables, state: State, p: Proposal, left: int, transfer_s: float) -> int:
    """One new cluster: a random peer of the pool, and then the most alike, until one more does not help.

    What counts as alike is drawn for each. Returns the pool's size afterwards; the cluster is at the place
    after those there are, and its value says whether it is one.
    """
    place = p.counts[1]
    order = p.orders[place]
    by_flops, by_line, by_memory, by_region = chance(state), chance(state), chance(state), 2.0 * chance(state)
    at = draw(state, left)
    first = p.pool[at]
    left -= 1
    p.pool[at] = p.pool[left]
    order[0], size = first, 1
    value = cluster_value(t, order, size, transfer_s, ANY, ROUGH, p.cuts, p.best, p.back)
    while size < order.size and left > 0:
        nearest, least = 0, NEVER
        for k in range(left):
            peer = p.pool[k]
            distance = by_flops * abs(t.peers[peer, LOG_FLOPS] - t.peers[first, LOG_FLOPS])
            distance += by_line * abs(t.peers[peer, LOG_LINE] - t.peers[first, LOG_LINE])
            distance += by_memory * abs(t.peers[peer, LOG_MEMORY] - t.peers[first, LOG_MEMORY])
            distance += NEAR_ENOUGH * chance(state)
            if t.regions[peer] != t.regions[order[size - 1]]:
                distance += by_region
            if distance < least:
                nearest, least = k, distance
        order[size] = p.pool[nearest]
        with_it = cluster_value(t, order, size + 1, transfer_s, value, ROUGH, p.cuts, p.best, p.back)
        if value > 0.0 and with_it <= value:
            break
        value = with_it
        size += 1
        left -= 1
        p.pool[nearest] = p.pool[left]
    p.sizes[place] = size
    p.values[place] = value
    return left


@njit(cache=True)
def judge(t: Tables, state: State, p: Proposal, transfer_s: float, least_gain: float) -> bool:
    """Whether the proposal would add that much; values its clusters, as far as it takes to know."""
    gain = 0.0
    for n in range(p.counts[0]):
        gain -= state.values[p.old[n]]
    for n in range(p.counts[1]):
        p.bounds[n] = p.values[n]
        if p.values[n] == UNKNOWN:
            p.bounds[n] = most_worth(t, p.orders[n], p.sizes[n])
        gain += p.bounds[n]
    clusters = state.counts[ACTIVE] - p.counts[0]
    for n in range(p.counts[1]):
        if gain < least_gain:
            return False
        if p.values[n] == UNKNOWN:
            least = least_gain - (gain - p.bounds[n])
            p.values[n] = cluster_value(
                t, p.orders[n], p.sizes[n], transfer_s, least, ROUGH, p.cuts, p.best, p.back
            )
        gain += p.values[n] - p.bounds[n]
        clusters += p.values[n] > 0.0
    return gain >= least_gain and clusters <= t.rules[MOST_CLUSTERS]


@njit(cache=True)
def accept(state: State, p: Proposal) -> None:
    """Do what the judged proposal says."""
    for n in range(p.counts[0]):
        dissolve(state, p.old[n])
    for n in range(p.counts[1]):
        if p.values[n] > 0.0:
            form(state, p.orders[n], p.sizes[n], p.values[n])


def scratch(t: Tables, most_stages: int) -> Proposal:
    """What `propose` and `judge` work in."""
    rows, columns = most_stages + 2, t.layers.shape[0]
    return Proposal(
        old=np.zeros(OLD, np.int64),
        orders=np.zeros((NEW, most_stages + 1), np.int64)[:, :most_stages].copy(),
        sizes=np.zeros(NEW, np.int64),
        values=np.zeros(NEW),
        bounds=np.zeros(NEW),
        counts=np.zeros(2, np.int64),
        pool=np.zeros(max(t.peers.shape[0], OLD * most_stages + ASKED), np.int64),
        cuts=np.zeros(rows, np.int64),
        best=np.empty((rows, columns)),
        back=np.zeros((rows, columns), np.int64),
    )
