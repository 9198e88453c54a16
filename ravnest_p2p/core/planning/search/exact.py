"""The best plan there is, for few peers.

Problem: ten peers form hundreds of thousands of ordered clusters, and what one is worth depends on the
standbys and on the slowest transfer Q of all. Solution: branch and bound.

1. For each set of peers and each Q, the most that a cluster of exactly these can be worth, over all orders
   and cuts, if the most reliable peer of all stood by for every stage.
2. For each Q and number of clusters, the best partition by these bounds, by dynamic programming over sets.
   Where that cannot beat the best plan known, nothing with this Q and this many clusters can.
3. Elsewhere, the most promising first, the partitions are gone through as far as their bounds allow. Which
   peers are idle is known then, so orders and cuts are bounded by what these add to them (`backing`); what
   could still win is tried, with the best standbys and the best rings.

Exact to `GAP`, relative.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations
from math import perm
from typing import NamedTuple

import numpy as np
from numba import njit

from ravnest_p2p.core.errors import PlanError
from ravnest_p2p.core.planning.layout import Cluster, Layout
from ravnest_p2p.core.planning.objective import ring_steps_s, score, slowest_transfer
from ravnest_p2p.core.planning.problem import Problem
from ravnest_p2p.core.planning.search.backing import Backing, backing, best_backing
from ravnest_p2p.core.planning.search.cuts_within import cuts_within
from ravnest_p2p.core.planning.search.intervals import NEVER, around_s, slowest_part_s
from ravnest_p2p.core.planning.search.kernels import (
    ANY,
    NEAR,
    cluster_value,
    value_of_cuts,
    workspace,
)
from ravnest_p2p.core.planning.search.tables import (
    FAILS,
    FREE_MOVES,
    LINE,
    SYNC,
    WINDOW,
    Floats,
    Ints,
    Tables,
    tables_of,
)

MOST_PEERS = 10

MOST_ORDERS = 500_000
"""Ordered clusters that are gone through; ten peers have as many in up to six stages."""

GAP = 1e-9

SURE = 1.0 + 2.0 * NEAR
"""A cluster's best value is found to `NEAR`; its bound must not be below it."""

CUTS = 4096
"""Room for the cuts of one order; more is made where it does not suffice."""

INSTANT_S = 1e-12
"""An interval that no rule forbids."""


def can_be_exact(problem: Problem) -> bool:
    """Whether there are few enough ordered clusters."""
    peers = len(problem.peers)
    stages = min(problem.rules.most_stages, problem.layers.count, peers)
    return peers <= MOST_PEERS and sum(perm(peers, size) for size in range(1, stages + 1)) <= MOST_ORDERS


class _Candidate(NamedTuple):
    """A cluster of a set, with what it is worth at most beside these idle peers."""

    most: float
    cluster: Cluster
    backing: Backing


class Exact:
    """Search of one problem of at most `MOST_PEERS` peers."""

    def __init__(self, problem: Problem, known: Layout) -> None:
        """Args:
        known: any feasible plan, the better the faster.
        """
        self._problem = problem
        self._best = known
        self._objective = score(problem, known).objective
        self._t = _with_standbys_for_all(problem)
        self._peers = len(problem.peers)
        self._stages = min(problem.rules.most_stages, problem.layers.count, self._peers)
        self._transfers = _transfers(self._t)
        self._cuts = np.zeros((CUTS, self._peers + 1), np.int64)
        self._bounds = self._cluster_bounds()

    def run(self) -> Layout:
        """The best plan."""
        rules = self._problem.rules
        counts = range(max(1, rules.least_clusters), min(self._peers, rules.most_clusters) + 1)
        if not counts:
            return self._best
        found = []
        for level, transfer_s in enumerate(map(float, self._transfers)):
            within = _best_within(np.ascontiguousarray(self._bounds[:, level]), counts[-1], self._peers)
            for count in counts:
                bound = float(within[count, -1]) * self._share(count, transfer_s)
                if self._beats(bound):
                    found.append((bound, count, level, within))
        for bound, count, level, within in sorted(found, key=lambda each: (-each[0], each[1], each[2])):
            if not self._beats(bound):
                break
            self._search(count, level, within)
        return self._best

    def _beats(self, bound: float) -> bool:
        return bound > self._objective * (1.0 + GAP)

    def _cluster_bounds(self) -> Floats:
        """(sets, Q): most that one cluster of a set is worth."""
        bounds = np.zeros((1 << self._peers, self._transfers.size))
        for size in range(1, self._stages + 1):
            orders = np.array(list(permutations(range(self._peers), size)), np.int64)
            _bound_orders(self._t, orders, self._transfers, bounds, *workspace(self._t, size))
        return np.maximum.accumulate(bounds, axis=1) * SURE

    def _share(self, count: int, transfer_s: float) -> float:
        """Of the time that is spent training, at most."""
        rules = self._problem.rules
        return rules.round_s / (rules.round_s + 2.0 * (count - 1) / count * transfer_s)

    def _search(self, count: int, level: int, within: Floats) -> None:
        share = self._share(count, float(self._transfers[level]))
        bounds = np.ascontiguousarray(self._bounds[:, level])
        for sets in self._partitions(within, bounds, count, (1 << self._peers) - 1, 0.0, share):
            self._try_sets(sets, bounds, float(self._transfers[level]), share)

    def _partitions(
        self, within: Floats, bounds: Floats, count: int, left: int, value: float, share: float
    ) -> Iterator[tuple[int, ...]]:
        """Sets of peers, one for each cluster, that could beat the best plan."""
        if count == 0:
            yield ()
            return
        for chosen in range(1, left + 1):
            if chosen & ~left or bounds[chosen] <= 0.0:
                continue
            # Each partition once: the following sets' peers all come before this one's last.
            rest = left & ~chosen & ((1 << (chosen.bit_length() - 1)) - 1)
            bound = value + bounds[chosen] + (within[count - 1, rest] if count > 1 else 0.0)
            if not self._beats(bound * share):
                continue
            for others in self._partitions(within, bounds, count - 1, rest, value + bounds[chosen], share):
                yield (chosen, *others)

    def _try_sets(self, sets: Sequence[int], bounds: Floats, transfer_s: float, share: float) -> None:
        idle = [i for i in range(self._peers) if not any(each >> i & 1 for each in sets)]
        backed = [self._backed(each, idle) for each in sets]
        most = [float(bounds[each]) * part for each, part in zip(sets, backed, strict=True)]
        choices: list[list[_Candidate]] = []
        for n, each in enumerate(sets):
            least = self._objective / share - (sum(most) - most[n])
            found = self._candidates(each, transfer_s, least, idle, backed[n]) if most[n] > least else []
            if not found:
                return
            choices.append(found)
            most[n] = found[0].most
        self._choose(choices, 0, [], 0.0, share, idle)

    def _backed(self, members: int, idle: Sequence[int]) -> float:
        """Which part of a set's bound these standbys leave: it had the best standby for every stage."""
        rules, peers = self._problem.rules, self._problem.peers
        fails = sorted((peers[i].fails_per_s for i in range(self._peers) if members >> i & 1), reverse=True)
        saved_s = max(0.0, rules.recover_s - rules.failover_s)
        uptimes = sorted((peers[i].uptime for i in idle), reverse=True)
        loss = sum(fails) * rules.recover_s
        # The most reliable for those that fail most often: no other way gains more.
        gained = saved_s * sum(f * uptime for f, uptime in zip(fails, uptimes, strict=False))
        best = saved_s * sum(fails) * max(peer.uptime for peer in peers)
        return (1.0 + loss - best) / (1.0 + loss - gained)

    def _candidates(
        self, members: int, transfer_s: float, least: float, idle: Sequence[int], backed: float
    ) -> list[_Candidate]:
        """Orders and cuts of a set that could be worth more than `least` with these standbys, best first.

        Args:
            backed: which part of their bounds the standbys leave.
        """
        peers = [i for i in range(self._peers) if members >> i & 1]
        orders = np.array(list(permutations(peers)), np.int64)
        bounds = SURE * _best_values(self._t, orders, transfer_s, *workspace(self._t, len(peers)))
        least *= 1.0 + GAP
        found: list[_Candidate] = []
        for order in orders[bounds * backed > least]:
            for cuts in self._cuts_above(order, transfer_s, least / backed):
                cluster = Cluster(tuple(map(int, order)), tuple(map(int, cuts[1:-1])))
                about = backing(self._problem, cluster, idle)
                if about.most > least:
                    found.append(_Candidate(about.most, cluster, about))
        return sorted(found, key=lambda each: (-each.most, each.cluster.peers, each.cluster.cuts))

    def _cuts_above(self, order: Ints, transfer_s: float, least: float) -> Iterator[Ints]:
        """Cuts for peers in this order whose bound is above `least`; moves are free, so only time counts."""
        whole = np.linspace(0, self._problem.layers.count, order.size + 1).astype(np.int64)
        value_s = value_of_cuts(self._t, order, order.size, whole, INSTANT_S) * INSTANT_S
        most_s = min(value_s / least if least > 0.0 else NEVER, self._problem.rules.slowest_s * (1.0 + GAP))
        number = self._cuts.shape[0]
        while (count := cuts_within(self._t, order, transfer_s, most_s, self._cuts)) > number:
            number = count
            self._cuts = np.zeros((number, self._peers + 1), np.int64)
        for cuts in self._cuts[:count, : order.size + 1].copy():
            slowest_s = slowest_part_s(self._t, order, order.size, cuts)
            interval_s = max(slowest_s, around_s(self._t, order, order.size, cuts) / self._t.rules[WINDOW])
            if value_s > least * interval_s:
                yield cuts

    def _choose(
        self,
        choices: Sequence[Sequence[_Candidate]],
        at: int,
        chosen: list[_Candidate],
        value: float,
        share: float,
        idle: Sequence[int],
    ) -> None:
        if at == len(choices):
            self._try(chosen, idle)
            return
        rest = sum(each[0].most for each in choices[at + 1 :])
        for each in choices[at]:
            if not self._beats((value + each.most + rest) * share):
                break
            self._choose(choices, at + 1, [*chosen, each], value + each.most, share, idle)

    def _try(self, chosen: Sequence[_Candidate], idle: Sequence[int]) -> None:
        clusters = [each.cluster for each in chosen]
        share = self._share(len(clusters), slowest_transfer(self._problem, clusters)[0])
        if not self._beats(sum(each.most for each in chosen) * share):
            return
        value, standbys = best_backing(self._problem, clusters, idle, [each.backing for each in chosen])
        if not self._beats(value * share * (1.0 + GAP)):
            return
        layout = Layout(tuple(clusters), standbys, *_best_rings(self._problem, clusters))
        try:
            objective = score(self._problem, layout).objective
        except PlanError:
            return  # too few standbys
        if objective > self._objective:
            self._best, self._objective = layout, objective


def _best_rings(problem: Problem, clusters: Sequence[Cluster]) -> tuple[tuple[int, ...], int]:
    count = len(clusters)
    if count < 2:
        return tuple(range(count)), 1
    ways = ((order, columns) for order in permutations(range(count)) for columns in range(1, count + 1))
    return min(ways, key=lambda way: (ring_steps_s(problem, clusters, *way), way))


def _with_standbys_for_all(problem: Problem) -> Tables:
    """Tables in which a failure costs what it does with the most reliable standby, and moves are free."""
    t, rules = tables_of(problem), problem.rules
    uptime = max(peer.uptime for peer in problem.peers)
    least_s = uptime * min(rules.failover_s, rules.recover_s) + (1.0 - uptime) * rules.recover_s
    if rules.recover_s > 0.0:
        t.peers[:, FAILS] *= least_s / rules.recover_s
    t.rules[FREE_MOVES] = 1.0
    return t


def _transfers(t: Tables) -> Floats:
    """Every Q that some stage can have, ascending."""
    sync = t.layers[:, SYNC]
    stages = sorted(
        {float(sync[hi] - sync[lo]) for lo in range(sync.size) for hi in range(lo + 1, sync.size)}
    )
    # A little more than the quotient, which another order of operations may exceed.
    values = {size / float(line) * (1.0 + 1e-12) for size in stages for line in t.peers[:, LINE]}
    return np.array(sorted(values))


@njit(cache=True, nogil=True)
def _bound_orders(
    t: Tables, orders: Ints, transfers: Floats, bounds: Floats, cuts: Ints, best: Floats, back: Ints
) -> None:
    """Enter each order's best value for every Q at which it changes."""
    size = orders.shape[1]
    for row in range(orders.shape[0]):
        order = orders[row]
        members = 0
        for s in range(size):
            members |= 1 << order[s]
        level = transfers.size - 1
        while level >= 0:
            value = cluster_value(t, order, size, transfers[level], ANY, NEAR, cuts, best, back)
            if value <= 0.0:
                break
            used = 0.0
            for s in range(size):
                used = max(
                    used, (t.layers[cuts[s + 1], SYNC] - t.layers[cuts[s], SYNC]) / t.peers[order[s], LINE]
                )
            while level > 0 and transfers[level - 1] >= used:
                level -= 1
            bounds[members, level] = max(bounds[members, level], value)
            level -= 1


@njit(cache=True, nogil=True)
def _best_values(t: Tables, orders: Ints, transfer_s: float, cuts: Ints, best: Floats, back: Ints) -> Floats:
    """Of each order with its best cuts."""
    values = np.empty(orders.shape[0])
    for row in range(orders.shape[0]):
        values[row] = cluster_value(t, orders[row], orders.shape[1], transfer_s, ANY, NEAR, cuts, best, back)
    return values


@njit(cache=True, nogil=True)
def _best_within(bounds: Floats, count: int, peers: int) -> Floats:
    """(count + 1, sets): most that so many clusters within a set are worth; below 0 where impossible."""
    sets = 1 << peers
    within = np.full((count + 1, sets), -NEVER)
    within[0] = 0.0
    for n in range(1, count + 1):
        for members in range(1, sets):
            lowest = members & -members
            rest = members ^ lowest
            best = within[n, rest]
            part = rest
            while True:
                with_lowest = part | lowest
                if bounds[with_lowest] > 0.0:
                    best = max(best, bounds[with_lowest] + within[n - 1, members ^ with_lowest])
                if part == 0:
                    break
                part = (part - 1) & rest
            within[n, members] = best
    return within
