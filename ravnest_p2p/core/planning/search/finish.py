"""From clusters to a plan: who stands by, and how the clusters form rings."""

from __future__ import annotations

from collections.abc import Sequence

from ravnest_p2p.core.planning.layout import Cluster, Layout
from ravnest_p2p.core.planning.objective import slowest_transfer, standbys_wanted, worth
from ravnest_p2p.core.planning.problem import Problem
from ravnest_p2p.core.planning.search.ring_order import ring_order
from ravnest_p2p.core.planning.standbys import match_standbys


def worth_keeping(problem: Problem, clusters: Sequence[Cluster]) -> list[list[Cluster]]:
    """All clusters; those without the ones whose slow lines cost all more than they bring; the best alone.

    Whichever of these there are, each once.
    """
    rules = problem.rules
    # Each with its slowest transfer and its value, the fastest lines first.
    rows = sorted(
        (slowest_transfer(problem, [each])[0], -worth(problem, each, {}).value, n)
        for n, each in enumerate(clusters)
    )
    best, best_count, value = 0.0, len(rows), 0.0
    for count, (transfer_s, minus, _) in enumerate(rows, 1):
        value -= minus
        rate = value / (rules.round_s + 2.0 * (count - 1) / count * transfer_s)
        if rate > best and count >= rules.least_clusters:
            best, best_count = rate, count
    ways = [set(range(len(rows))), {n for _, _, n in rows[:best_count]}]
    if rules.least_clusters <= 1 and rows:
        ways.append({min(rows, key=lambda row: row[1:])[2]})
    different = [way for n, way in enumerate(ways) if way and way not in ways[:n]]
    return [[each for n, each in enumerate(clusters) if n in way] for way in different]


def finished(problem: Problem, clusters: Sequence[Cluster]) -> Layout:
    """A plan of these clusters, with rings and standbys.

    Where more standbys are asked for than are idle, the least valuable clusters are given up for them.
    """
    kept = list(clusters)
    standbys = match_standbys(problem, kept)
    while len(kept) > 1 and len(standbys) < standbys_wanted(problem, sum(len(each.peers) for each in kept)):
        kept.remove(min(kept, key=lambda each: (worth(problem, each, {}).value, each.peers)))
        standbys = match_standbys(problem, kept)
    order, columns = ring_order(problem, kept)
    return Layout(tuple(kept), standbys, order, columns)
