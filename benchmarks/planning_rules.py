"""Simpler ways to form clusters, against which the planner is measured.

* `sort_and_slice`: peers by speed, cut into groups of equal size, the best size.
* `greedy`: the same after the slowest lines were left out, the best share of them, and near peers together.
* `paper_fitness`: the genetic algorithm of Ravnest's prototype: a label for each peer; clusters short of
  memory are penalised, and the spread of the clusters' sums of memory over bandwidth.
* `labels`: the same genetic algorithm with our objective as its fitness, a label for peers that are left out,
  and half of its first labels by `sort_and_slice`.

All are given the planner's own cuts, rings and standbys, so that what is compared is the grouping alone. The
genetic algorithms run for as long as they are told, over numbers of clusters.

Source of the fitness: Menon et al., arXiv 2401.01728, section 3, and its prototype's cluster formation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ravnest_p2p.core.errors import PlanError
from ravnest_p2p.core.planning.layout import Cluster, Layout
from ravnest_p2p.core.planning.objective import score, slowest_transfer
from ravnest_p2p.core.planning.problem import Problem
from ravnest_p2p.core.planning.search.cutter import Cutter
from ravnest_p2p.core.planning.search.finish import finished
from ravnest_p2p.core.planning.search.tables import tables_of

POPULATION, TOURNAMENT, MUTATION = 200, 5, 0.01
MEMORY_WEIGHT = 100.0
KEPT_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)

Labels = NDArray[np.int64]
Fitness = Callable[[Labels, int], float]


class Rules:
    """The simpler ways for one problem."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._cutter = Cutter(tables_of(problem))
        peers = problem.peers
        self._memory = np.array([peer.memory_bytes for peer in peers])
        self._over_line = np.array([peer.memory_bytes / peer.bytes_s for peer in peers])
        self._rank = np.array([[peer.region, -peer.flops] for peer in peers])

    def sort_and_slice(self) -> Layout:
        """Groups of equal size in order of speed."""
        return self._best_slices([self._by_speed(range(len(self._problem.peers)))])

    def greedy(self) -> Layout:
        """The same without the slowest lines, in order of speed or of region and speed."""
        peers = self._problem.peers
        by_line = sorted(range(len(peers)), key=lambda i: (-peers[i].bytes_s, i))
        orders = []
        for share in KEPT_SHARES:
            kept = by_line[: max(1, round(share * len(by_line)))]
            orders.append(self._by_speed(kept))
            orders.append(sorted(kept, key=lambda i: (peers[i].region, -peers[i].flops, i)))
        return self._best_slices(orders)

    def paper_fitness(self, seconds: float, counts: Sequence[int], seed: int) -> Layout:
        """The best plan by the objective among the best labels by the paper's fitness, one for each count."""
        need = self._problem.layers.held_bytes[-1]

        def penalty(labels: Labels, count: int) -> float:
            memory = np.bincount(labels, self._memory, count)
            ratio = np.bincount(labels, self._over_line, count)[memory > 0]
            short = np.clip(need - memory[memory > 0], 0.0, None)
            return -float(MEMORY_WEIGHT * short.sum() + np.ptp(ratio))

        return self._evolved(penalty, seconds, counts, seed, None)

    def labels(self, seconds: float, counts: Sequence[int], seed: int) -> Layout:
        """The same search with what the clusters are worth as its fitness."""

        def worth(labels: Labels, count: int) -> float:
            clusters = self._clusters(self._groups(labels, count))
            value = sum(self._cutter.cut(cluster.peers, np.inf)[0] for cluster in clusters)
            if len(clusters) < 2:
                return value
            transfer_s = slowest_transfer(self._problem, clusters)[0] * 2.0 * (1.0 - 1.0 / len(clusters))
            return value / (1.0 + transfer_s / self._problem.rules.round_s)

        return self._evolved(worth, seconds, counts, seed, self._by_speed(range(len(self._problem.peers))))

    def _evolved(
        self,
        fitness: Fitness,
        seconds: float,
        counts: Sequence[int],
        seed: int,
        order: Sequence[int] | None,
    ) -> Layout:
        """Args:
        order: slices of it are among the first labels, and peers may be left out; None for neither.
        """
        found = []
        for n, count in enumerate(counts):
            population = self._first(count, np.random.default_rng(seed + n), order)
            kinds = count + (order is not None)
            labels = _evolve(fitness, population, count, kinds, seconds / len(counts), seed + n)
            found.append(self._clusters(self._groups(labels, count)))
        return self._best(found)

    def _first(self, count: int, chance: np.random.Generator, order: Sequence[int] | None) -> Labels:
        peers = len(self._problem.peers)
        population = chance.integers(0, count, (POPULATION, peers))
        if order is not None:
            sizes = chance.integers(2, self._problem.rules.most_stages + 1, POPULATION // 2)
            slices = np.minimum(np.arange(peers)[None, :] // sizes[:, None], count)
            population[: POPULATION // 2, list(order)] = slices
        return population

    def _groups(self, labels: Labels, count: int) -> list[list[int]]:
        order = np.lexsort((self._rank[:, 1], self._rank[:, 0]))
        return [[int(i) for i in order if labels[i] == label] for label in range(count)]

    def _by_speed(self, peers: Sequence[int]) -> list[int]:
        return sorted(peers, key=lambda i: (-self._problem.peers[i].flops, i))

    def _best_slices(self, orders: Sequence[Sequence[int]]) -> Layout:
        sizes = range(1, self._problem.rules.most_stages + 1)
        return self._best(
            [
                self._clusters([order[at : at + size] for at in range(0, len(order), size)])
                for order in orders
                for size in sizes
            ]
        )

    def _clusters(self, groups: Sequence[Sequence[int]]) -> list[Cluster]:
        """Those of the groups that can train, each of as many of its peers as are allowed."""
        most = self._problem.rules.most_stages
        cut = (self._cutter.cut(list(group)[:most], np.inf)[1] for group in groups if group)
        return [cluster for cluster in cut if cluster is not None]

    def _best(self, plans: Sequence[Sequence[Cluster]]) -> Layout:
        """Of the plans the best by what their clusters are worth and their slowest transfer, finished."""
        problem = self._problem

        def rough(clusters: Sequence[Cluster]) -> float:
            value = sum(self._cutter.cut(cluster.peers, np.inf)[0] for cluster in clusters)
            return value / (problem.rules.round_s + 2.0 * slowest_transfer(problem, clusters)[0])

        best = max((plan for plan in plans if plan), key=rough, default=())
        return finished(problem, best)


def objective(problem: Problem, layout: Layout) -> float:
    """Of a plan; 0 of one that is infeasible."""
    try:
        return score(problem, layout).objective if layout.clusters else 0.0
    except PlanError:
        return 0.0


def _evolve(
    fitness: Fitness, population: Labels, count: int, kinds: int, seconds: float, seed: int
) -> Labels:
    """Tournaments, one-point crossover, mutation of each label; the best labels ever seen, which stay.

    Args:
        kinds: labels from 0 on; from `count` on they stand for no cluster.
    """
    chance = np.random.default_rng(seed)
    peers = population.shape[1]
    best: Labels
    best, best_fitness = population[0], -np.inf
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        found = []
        for labels in population:
            found.append(fitness(labels, count))
            if time.perf_counter() > end_s:
                break
        fittest = int(np.argmax(found))
        if found[fittest] > best_fitness:
            best, best_fitness = population[fittest].copy(), found[fittest]
        if len(found) < POPULATION:
            break
        entered = chance.integers(0, POPULATION, (POPULATION, TOURNAMENT))
        parents = population[entered[np.arange(POPULATION), np.argmax(np.array(found)[entered], axis=1)]]
        places = chance.integers(1, max(2, peers), POPULATION // 2)[:, None]
        first, second = parents[0::2], parents[1::2]
        left = np.arange(peers)[None, :] < places
        population = np.concatenate([np.where(left, first, second), np.where(left, second, first)])
        mutated = chance.random(population.shape) < MUTATION
        population = np.where(mutated, chance.integers(0, kinds, population.shape), population)
        population[0] = best
    return best
