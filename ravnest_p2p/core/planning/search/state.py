"""A plan that is being changed: clusters in slots, and who is in none; compiled.

Problem: a million changes a second leave no time to copy a plan. Solution: flat arrays that are changed in
place, in which a slot, an idle peer and the numbers of both are found in one step.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ravnest_p2p.core.planning.search.tables import Floats, Ints

OLD, NEW = 2, 3
"""Most clusters that one change takes apart, and makes."""

IDLE, ACTIVE = 0, 1
"""Places in `State.counts`."""


class State(NamedTuple):
    """Clusters in slots, and who is in none.

    Attributes:
        members: (C, M), of slot c the first `sizes[c]`, in pipeline order.
        sizes, values: (C,), 0 for an empty slot.
        slot_of: (N,), -1 for an idle peer.
        idle, idle_at: (N,), the idle peers in any order, and where each stands.
        active, active_at: (C,), the slots in use, then the empty ones, and where each stands.
        counts: (2,), of idle peers and of slots in use.
        total: (1,), sum of the values.
        random: (1,), of xorshift64*.
    """

    members: Ints
    sizes: Ints
    values: Floats
    slot_of: Ints
    idle: Ints
    idle_at: Ints
    active: Ints
    active_at: Ints
    counts: Ints
    total: Floats
    random: NDArray[np.uint64]


@njit(cache=True)
def draw(state: State, count: int) -> int:
    """A whole number in [0, count). Source: Vigna, xorshift64*, 2016."""
    x = state.random[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    state.random[0] = x
    drawn: int = np.int64(((x * np.uint64(2685821657736338717)) >> np.uint64(33)) % np.uint64(count))  # type: ignore[assignment]
    return drawn


@njit(cache=True)
def chance(state: State) -> float:
    """In [0, 1)."""
    return draw(state, 1 << 24) / float(1 << 24)


@njit(cache=True)
def form(state: State, order: Ints, size: int, value: float) -> None:
    """A cluster of idle peers in an empty slot, which there must be."""
    slot = state.active[state.counts[ACTIVE]]
    state.counts[ACTIVE] += 1
    state.sizes[slot], state.values[slot] = size, value
    state.total[0] += value
    for s in range(size):
        peer = order[s]
        state.members[slot, s] = peer
        state.slot_of[peer] = slot
        last = state.counts[IDLE] - 1
        at, moved = state.idle_at[peer], state.idle[last]
        state.idle[at], state.idle_at[moved] = moved, at
        state.idle_at[peer] = -1
        state.counts[IDLE] = last


@njit(cache=True)
def dissolve(state: State, slot: int) -> None:
    """Take a cluster apart: its peers are idle, its slot is empty."""
    state.total[0] -= state.values[slot]
    for s in range(state.sizes[slot]):
        peer = state.members[slot, s]
        state.slot_of[peer] = -1
        state.idle[state.counts[IDLE]] = peer
        state.idle_at[peer] = state.counts[IDLE]
        state.counts[IDLE] += 1
    state.sizes[slot], state.values[slot] = 0, 0.0
    last = state.counts[ACTIVE] - 1
    at, moved = state.active_at[slot], state.active[last]
    state.active[at], state.active_at[moved] = moved, at
    state.active[last], state.active_at[slot] = slot, last
    state.counts[ACTIVE] = last


def empty_state(peers: int, most_stages: int, seed: int) -> State:
    """Everybody idle; a slot for each peer, and for the most that one change makes."""
    slots = peers + NEW
    everybody = np.arange(peers, dtype=np.int64)
    return State(
        members=np.zeros((slots, most_stages), np.int64),
        sizes=np.zeros(slots, np.int64),
        values=np.zeros(slots),
        slot_of=np.full(peers, -1, np.int64),
        idle=everybody.copy(),
        idle_at=everybody.copy(),
        active=np.arange(slots, dtype=np.int64),
        active_at=np.arange(slots, dtype=np.int64),
        counts=np.array([peers, 0], np.int64),
        total=np.zeros(1),
        random=np.array([(2 * seed + 1) * 0x9E3779B97F4A7C15 % 2**64 or 1], np.uint64),
    )
