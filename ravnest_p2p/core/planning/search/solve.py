"""The best plan for a problem, by whatever way suits how many peers there are.

| peers                                      | way                                              |
|--------------------------------------------|--------------------------------------------------|
| up to 10, if in not too many stages        | memetic search, then proven or beaten by `exact` |
|                                            | (not on the quick budget: seconds)               |
| up to 2,000                                | memetic search                                   |
| more                                       | shards of about a thousand                       |
"""

from __future__ import annotations

from collections.abc import Sequence

from ravnest_p2p.core.planning.layout import Cluster, Layout
from ravnest_p2p.core.planning.problem import Problem
from ravnest_p2p.core.planning.search.effort import QUICK, effort_for
from ravnest_p2p.core.planning.search.exact import Exact, can_be_exact
from ravnest_p2p.core.planning.search.memetic import Progress, Search, silent
from ravnest_p2p.core.planning.search.shards import MOST_AT_ONCE, search_shards


def solve(
    problem: Problem,
    *,
    seed: int = 0,
    budget: str = "normal",
    start: Sequence[Cluster] = (),
    progress: Progress = silent,
) -> Layout:
    """The best plan found; the same for the same arguments on every machine.

    Args:
        budget: of `effort.BUDGETS`.
        start: clusters of an earlier plan; where given, few stages move.
        progress: told what was tried, and the best objective so far.
    Raises:
        PlanError: no cluster fits.
    """
    peers = len(problem.peers)
    if peers > MOST_AT_ONCE:
        return search_shards(problem, seed, budget, progress)
    found = Search(problem, seed, effort_for(peers, budget), progress).run(start)
    provable = not start and budget != QUICK and can_be_exact(problem)
    return Exact(problem, found).run() if provable else found
