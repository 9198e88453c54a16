"""Small changes that the objective itself finds better.

Problem: while clusters are searched, standbys and the rings' latency are left out or priced roughly, which
decides where peers are few. Solution: hill climbing at the end, in which each change is finished to a plan,
standbys and rings included, and judged as such.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ravnest_p2p.core.planning.layout import Cluster

Orders = tuple[tuple[int, ...], ...]
"""Of each cluster, its peers in pipeline order."""

Judge = Callable[[Orders, float], float]
"""What the best plan of these clusters with this Q is worth."""

OTHER_TRANSFERS = (0.7, 0.85, 1.2, 1.5)
WIDER = 1.2
"""Q of a change once more: many a move only helps where more may be averaged."""


def polished(clusters: Sequence[Cluster], transfer_s: float, peers: int, judge: Judge, tries: int) -> None:
    """Climb from a plan until no change helps, or so many were tried; whoever judges keeps the best.

    Args:
        transfer_s: Q, see `kernels`.
        peers: how many there are, idle ones included.
    """
    orders: Orders = tuple(cluster.peers for cluster in clusters)
    best = judge(orders, transfer_s)
    left = tries
    better = True
    while better:
        better = False
        for changed, factor in _changes(orders, peers):
            if left == 0:
                return
            left -= 1
            if (value := judge(changed, transfer_s * factor)) > best:
                orders, transfer_s, best, better = changed, transfer_s * factor, value, True
                break


def _changes(orders: Orders, peers: int) -> Iterator[tuple[Orders, float]]:
    """All plans that differ little, and in times of the Q they are cut for."""
    for factor in OTHER_TRANSFERS:
        yield orders, factor
    for changed in _moved(orders, peers):
        yield changed, 1.0
        yield changed, WIDER


def _moved(orders: Orders, peers: int) -> Iterator[Orders]:
    """Two peers exchanged, one elsewhere or left out, a cluster given up."""
    place = {peer: (c, s) for c, order in enumerate(orders) for s, peer in enumerate(order)}
    for a in range(peers):
        for b in range(a + 1, peers):
            if a in place or b in place:
                yield _exchanged(orders, place, a, b)
    for peer in range(peers):
        without = tuple(tuple(p for p in order if p != peer) for order in orders)
        if peer in place:
            yield tuple(filter(None, without))
        for c, order in enumerate(without):
            for s in range(len(order) + 1):
                yield tuple(filter(None, (*without[:c], (*order[:s], peer, *order[s:]), *without[c + 1 :])))
    for c in range(len(orders)):
        if len(orders) > 1:
            yield (*orders[:c], *orders[c + 1 :])


def _exchanged(orders: Orders, place: dict[int, tuple[int, int]], a: int, b: int) -> Orders:
    changed = [list(order) for order in orders]
    for old, new in ((a, b), (b, a)):
        if old in place:
            c, s = place[old]
            changed[c][s] = new
    return tuple(map(tuple, changed))
