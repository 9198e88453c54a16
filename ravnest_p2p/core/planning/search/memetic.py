"""The search for one problem of up to a few thousand peers.

What clusters are worth does not depend on one another but for Q, the averaging's slowest transfer. So:

1. **Scout**: for Q from wide to narrow, a short annealing each; what it is worth falls on both sides of the
   best Q.
2. **Parents**: longer annealings with the Q of the best four, and again of the best two (successive halving).
3. **Children**: clusters of the best, those of another that share no peer with them, the rest by annealing
   from a low temperature (grouping crossover: Falkenauer 1996). A child takes the place of the worst.
4. **Finish**: cuts, rings and standbys, and the objective itself decides among all that was found. Of few
   peers the best plans are polished by it.

Where a plan is there, the search begins with it, and stages that move have a price. Everything is counted in
moves, so that seed and effort alone decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from ravnest_p2p.core.errors import PlanError
from ravnest_p2p.core.planning.layout import Cluster, Layout
from ravnest_p2p.core.planning.objective import score, slowest_transfer, worth
from ravnest_p2p.core.planning.problem import Problem
from ravnest_p2p.core.planning.search.annealing import (
    ALIKE,
    LOSSES,
    REGION,
    anneal,
    cooling,
    most_alike,
    revalue,
)
from ravnest_p2p.core.planning.search.cutter import Cutter
from ravnest_p2p.core.planning.search.effort import CHILDREN, FEW, SCOUTED, SOME, Effort
from ravnest_p2p.core.planning.search.finish import finished, worth_keeping
from ravnest_p2p.core.planning.search.moves import scratch
from ravnest_p2p.core.planning.search.polish import Orders, polished
from ravnest_p2p.core.planning.search.state import ACTIVE, State, empty_state, form
from ravnest_p2p.core.planning.search.tables import (
    LOG_FLOPS,
    LOG_LINE,
    LOG_MEMORY,
    MOST_CLUSTERS,
    STAY,
    Tables,
    tables_of,
)

HOT, WARM, COLD = 0.1, 0.02, 0.001
"""Temperatures, in values of a typical cluster: where annealing begins, a child's begins, and both end."""

MOVING = 0.04
"""Where annealing begins that has to leave a plan that is there, against the price of stages that move."""

NARROWING, FALLEN = 0.8, 0.95
"""Scouted Q from one to the next, and when it is too narrow: thrice below this share of the best."""


OTHER_TRANSFERS = (1.0, 0.9, 1.0, 0.8, 1.15)
"""A child's Q in times of its parent's, in turn."""

CLEAR_GAIN = 0.4
"""Least that a stage's move brings, in times of what a stage is worth on average, where a plan is there."""

TRIAL = 100
"""Moves for each peer that only go up, to learn what a typical cluster is worth."""

SLACK = 1.0 + 1e-9
"""Of a Q that was computed in another order."""

MOST_POLISHED, POLISHED = 30, 4
"""Peers for which polishing is worth the time, and plans that are."""


@dataclass(frozen=True, slots=True)
class Found:
    """A plan, and what it is worth."""

    layout: Layout
    objective: float
    transfer_s: float


Progress = Callable[[str, float], None]
"""Told what was tried, and the best objective so far."""


def silent(what: str, best: float) -> None:
    """No progress."""


class Search:
    """One search; the same for the same problem, seed and effort."""

    def __init__(self, problem: Problem, seed: int, effort: Effort, progress: Progress = silent) -> None:
        self._problem = problem
        self._seed = seed
        self._effort = effort
        self._progress = progress
        self._t = tables_of(problem)
        self._alone = _one_cluster(self._t)
        self._peers = len(problem.peers)
        self._stages = min(problem.rules.most_stages, problem.layers.count, self._peers)
        columns = np.array([LOG_FLOPS, LOG_LINE, LOG_MEMORY])
        self._alike = most_alike(self._t, columns, REGION, max(1, min(ALIKE, self._peers - 1)))
        self._scratch = scratch(self._t, self._stages)
        self._cutter = Cutter(self._t)
        self._runs = 0
        self._typical = 0.0
        self._taken_s = math.inf
        self._warm = WARM
        self._scouted: list[Found] = []
        self._best: Found | None = None

    def run(self, start: Sequence[Cluster] = ()) -> Layout:
        """The best plan found.

        Args:
            start: clusters of an earlier plan, from which few stages move; peers that are none any more left
                out.
        Raises:
            PlanError: no cluster fits.
        """
        if start:
            self._warm = MOVING
            self._stay_with(start)
        else:
            self.scout()
        if self._best is None:
            raise PlanError("no cluster of these peers can hold the model and train it fast enough")
        parents, heat = self._scouted, self._warm if start else HOT
        for count, moves in ((SOME, self._effort.some), (FEW, self._effort.few)):
            best = sorted(parents, key=_worst_first, reverse=True)[:count]
            parents = best + [self._anneal(start, each.transfer_s, moves, heat) for each in best]
        for n in range(CHILDREN):
            parents.sort(key=_worst_first, reverse=True)
            child = self._child(parents[0], parents[1 + n % (len(parents) - 1)], n)
            parents[-1] = max(parents[-1], child, key=_worst_first)
        self._polish(parents)
        return self._best.layout

    def _polish(self, parents: Sequence[Found]) -> None:
        """The best few as long as something small makes them better."""
        if self._peers > MOST_POLISHED:
            return
        different = {found.objective: found for found in (*self._scouted, *parents) if found.objective > 0.0}
        for _, found in sorted(different.items(), reverse=True)[:POLISHED]:
            polished(found.layout.clusters, found.transfer_s, self._peers, self._judge, self._effort.polish)

    def _judge(self, orders: Orders, transfer_s: float) -> float:
        clusters = [self._cutter.cut(order, transfer_s)[1] for order in orders]
        return self._found([cluster for cluster in clusters if cluster is not None], transfer_s).objective

    def _stay_with(self, start: Sequence[Cluster]) -> None:
        """Price stages that move, and scout Q about that of the given clusters; anywhere if none fits."""
        sound = fitting(self._problem, start)
        if not sound:
            self.scout()
            return
        worths = [worth(self._problem, cluster, {}).value for cluster in sound]
        if not self._problem.rules.moves_are_free:
            self._t.rules[STAY] = CLEAR_GAIN * sum(worths) / sum(len(cluster.peers) for cluster in sound)
        transfer_s = slowest_transfer(self._problem, sound)[0]
        self._scouted = [self._found(sound, transfer_s)]
        for factor in (1.0, 1.0 / NARROWING, NARROWING):
            self._scouted.append(self._anneal(start, transfer_s * factor, self._effort.scout, self._warm))

    def scout(self) -> float:
        """Q with which a short annealing does best; one cluster alone averages nothing and needs none.

        From what a plan takes that does not care about Q, each bound is narrower than what the last one took.
        """
        best = self._anneal((), math.inf, self._effort.scout, HOT, self._alone)
        self._scouted, bound_s, falling = [best], math.inf, 0
        for _ in range(SCOUTED - 1):
            found = self._anneal((), bound_s, self._effort.scout, HOT)
            self._scouted.append(found)
            falling = falling + 1 if found.objective < best.objective * FALLEN else 0
            if falling == 3:
                break
            best = max(best, found, key=_worst_first)
            bound_s = NARROWING * min(bound_s, self._taken_s)
        return best.transfer_s

    def parent(self, transfer_s: float) -> Found:
        return self._anneal((), transfer_s, self._effort.few, HOT)

    def _child(self, one: Found, other: Found, number: int) -> Found:
        """Half of one parent's clusters, and those of the other that fit beside them.

        Q is about the parent's: which is best is known only afterwards.
        """
        kept = [cluster for n, cluster in enumerate(one.layout.clusters) if (n + number) % 2 == 0]
        used = {peer for cluster in kept for peer in cluster.peers}
        kept += [cluster for cluster in other.layout.clusters if used.isdisjoint(cluster.peers)]
        transfer_s = one.transfer_s * OTHER_TRANSFERS[number % len(OTHER_TRANSFERS)]
        return self._anneal(kept, transfer_s, self._effort.child, self._warm)

    def _anneal(
        self,
        start: Sequence[Cluster],
        transfer_s: float,
        moves: int,
        hot: float,
        tables: Tables | None = None,
    ) -> Found:
        """Anneal from the given clusters, everybody else idle, and finish what comes out."""
        self._runs += 1
        t = tables or self._t
        state = empty_state(self._peers, self._stages, self._seed * 1_000_003 + self._runs)
        for cluster in start:
            order = np.array(cluster.peers, np.int64)
            form(state, order, order.size, 0.0)
        revalue(t, state, self._scratch, transfer_s)
        if not self._typical:
            self._go(t, state, transfer_s, TRIAL * self._peers, 0.0, 1.0)
            self._typical = float(state.total[0]) / max(1, int(state.counts[ACTIVE]))
        heat = self._typical
        self._go(t, state, transfer_s, moves, hot * heat, cooling(hot, COLD))
        slots = sorted(state.active[: state.counts[ACTIVE]])
        orders = (state.members[slot, : state.sizes[slot]] for slot in slots)
        cut = (self._cutter.cut(order, transfer_s)[1] for order in orders)
        clusters = [cluster for cluster in cut if cluster is not None]
        self._taken_s = slowest_transfer(self._problem, clusters)[0] if clusters else math.inf
        return self._found(clusters, transfer_s)

    def _go(self, t: Tables, state: State, transfer_s: float, moves: int, hot: float, factor: float) -> None:
        arrays = (t, state, self._scratch, self._alike, LOSSES)
        anneal(*arrays, transfer_s, moves, hot, factor)

    def _net(self, layout: Layout) -> float:
        """Objective less the price of the stages that move; raises as `score`."""
        found = score(self._problem, layout)
        price = float(self._t.rules[STAY]) * found.moved
        return found.objective * (1.0 - price / sum(each.value for each in found.clusters))

    def _found(self, clusters: Sequence[Cluster], transfer_s: float) -> Found:
        """A plan of these clusters, noted if it is the best; worth nothing where it breaks a rule."""
        found = Found(Layout(()), 0.0, transfer_s)
        for kept in worth_keeping(self._problem, clusters):
            layout = finished(self._problem, kept)
            with suppress(PlanError):
                taken_s = min(transfer_s, slowest_transfer(self._problem, kept)[0] * SLACK)
                found = max(found, Found(layout, self._net(layout), taken_s), key=_worst_first)
        if found.objective > (0.0 if self._best is None else self._best.objective):
            self._best = found
        self._progress(f"Q = {transfer_s:.1f} s", 0.0 if self._best is None else self._best.objective)
        return found


def fitting(problem: Problem, clusters: Sequence[Cluster]) -> list[Cluster]:
    """Those that alone would be a plan."""
    rules = replace(problem.rules, least_clusters=1, standby_quota=0.0)
    alone, found = replace(problem, rules=rules), []
    for cluster in clusters:
        with suppress(PlanError):
            score(alone, Layout((cluster,)))
            found.append(cluster)
    return found


def _worst_first(found: Found) -> float:
    return found.objective


def _one_cluster(t: Tables) -> Tables:
    """The same problem for plans of one cluster."""
    rules = t.rules.copy()
    rules[MOST_CLUSTERS] = 1.0
    return t._replace(rules=rules)
