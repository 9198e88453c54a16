"""In which order a job's clusters form rings, and in how many columns.

Problem: one ring of many clusters takes a step of latency for each, and neighbours in it may be far apart.
Solution: what the search knows of rings (`search.ring_order`), for the clusters as they were formed, found by
it or not. Few clusters stay one ring in the order of their numbers: the chunks of others fill what a hop
takes, and members of a ring keep less for others than those of a grid.
"""

from __future__ import annotations

from collections.abc import Sequence

from ravnest_p2p.core.planning.cost import ONE_RING_UP_TO, Draft, planning_table
from ravnest_p2p.core.planning.job_problem import problem_of
from ravnest_p2p.core.planning.layout import Cluster
from ravnest_p2p.core.types import JobSpec


def rings_of(spec: JobSpec, drafts: Sequence[Draft], seed: int | None) -> tuple[tuple[int, ...], int]:
    """Order of the clusters and columns, as in `JobPlan`.

    Args:
        seed: None where the compiled search may not be used.
    """
    if len(drafts) <= ONE_RING_UP_TO or seed is None:
        return (), 1
    from ravnest_p2p.core.planning.search.ring_order import ring_order  # with what is compiled

    peers = [peer for draft in drafts for peer in draft.peers]
    problem = problem_of(spec, planning_table(spec), peers, most_stages=len(drafts[0].peers))
    index = {peer.peer: n for n, peer in enumerate(peers)}
    return ring_order(problem, [Cluster(tuple(index[peer] for peer in draft.ids), ()) for draft in drafts])
