"""Which peers form clusters, how many, and in which order.

Problem: the number of groupings explodes, while a good one needs peers of a cluster to be alike and near,
each stage to fit its peer, and no needless peer. Solution: for each shape (clusters × stages) some groupings:
every one if peers are few; else the fastest peers cut into like neighbours, peers near one another, and
peers dealt out by memory. Each group gets its best order and cuts (`cost.draft_cluster`). Of the groupings
within 5 % of the fastest, the one of most similar peers wins; of the shapes, a larger one must be clearly
faster. Where there are too many peers for every grouping, the compiled search (`search`) looks for a better
one still, of clusters of any size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from math import comb

from ravnest_p2p.core.capability import dissimilarity, link_bps
from ravnest_p2p.core.coordinates import predicted_rtt_s
from ravnest_p2p.core.errors import PlanError
from ravnest_p2p.core.planning.cost import (
    MAX_BLOCKS,
    Draft,
    draft_cluster,
    planning_table,
    stage_need_bytes,
    updates_per_s,
)
from ravnest_p2p.core.planning.cuts import MIN_FLOPS
from ravnest_p2p.core.planning.job_problem import problem_of
from ravnest_p2p.core.types import Capability, JobSpec, PeerId

MAX_STAGES = 8
"""Most stages that the planner chooses by itself; a job may ask for more."""

MAX_CLUSTERS = 8
"""Most clusters of one shape that the planner chooses by itself; a job may ask for more."""

MAX_SEARCHED_STAGES = 16
"""Most stages that the search chooses."""

CLEAR_GAIN = 1.1
"""A shape of more peers must be this many times faster than one of fewer."""

NEAR_BEST = 0.95
"""Groupings whose speed is at least this share of the best one's count as equally fast."""

ROUGH_BLOCKS, LEAST_BLOCKS = 480, 16
"""Clusters are compared by cuts between the first over the peers many blocks, and then cut finely; but the
second at least. All groupings of 64 peers then take a second."""

EVERY_GROUPING_UP_TO_PEERS = 6
"""Of more peers, the search looks for the best clusters."""

_EVERY_GROUPING_UP_TO = 60
_EVERY_ORDER_UP_TO = 3

Group = tuple[Capability, ...]


@dataclass(frozen=True, slots=True)
class Formation:
    """Clusters for one job, fastest first, and their predicted updates a second."""

    clusters: tuple[Draft, ...]
    rate: float


class ClusterSearch:
    """Searches the clusters of one job among the given peers; remembers the groups that it has tried."""

    def __init__(
        self,
        spec: JobSpec,
        peers: Sequence[Capability],
        memory_scale: float = 1.0,
        seed: int | None = 0,
    ) -> None:
        """Args:
        memory_scale: what stages take over the estimate, as measured.
        seed: of the compiled search, where peers are many; None for simple rules alone.
        """
        self._spec = spec
        self._seed = seed
        self._table = planning_table(spec, memory_scale)
        smallest = min(
            stage_need_bytes(spec, self._table, 0, 1, n, n + 1, 0) for n in range(len(spec.layers))
        )
        able = (peer for peer in peers if peer.flops >= MIN_FLOPS and peer.memory_bytes >= smallest)
        self._peers = sorted(able, key=lambda c: c.peer)
        few = len(self._peers) <= EVERY_GROUPING_UP_TO_PEERS
        rough = max(LEAST_BLOCKS, min(MAX_BLOCKS, ROUGH_BLOCKS // max(1, len(self._peers))))
        self._rough = self._table if few else planning_table(spec, memory_scale, rough)
        self._drafts: dict[tuple[PeerId, ...], Draft | None] = {}

    def best(self, *, most_peers: int | None = None, clusters: int | None = None) -> Formation | None:
        """The best formation; None where no shape fits.

        Args:
            most_peers: bound on all peers together; None for no bound.
            clusters: replaces the number that the job asks for.
        """
        bound = len(self._peers) if most_peers is None else min(most_peers, len(self._peers))
        wanted = self._spec.clusters if clusters is None else clusters
        best = self.simple(bound, wanted)
        searched = self._searched(bound, wanted)
        if searched is None or best is None:
            return searched or best
        return searched if searched.rate > best.rate * _gain_wanted(best, searched) else best

    def of_shapes(self, shapes: Iterable[tuple[int, int]]) -> Formation | None:
        """The fastest of these shapes, (stages, clusters), by the simple groupings; None where none fits."""
        found = (self._best_of_shape(stages, count) for stages, count in sorted(shapes))
        return self._refined(max((f for f in found if f is not None), key=lambda f: f.rate, default=None))

    def simple(self, bound: int, clusters: int) -> Formation | None:
        """The best of all shapes by the simple groupings alone; None where none fits.

        Args:
            bound: on all peers together, at most as many as there are.
            clusters: wanted number; 0 for any.
        """
        best: Formation | None = None
        for stages, count in self._shapes(bound, clusters):
            if best is not None and self._fastest_possible(stages * count) <= best.rate * CLEAR_GAIN:
                continue
            formation = self._best_of_shape(stages, count)
            if formation is not None and (best is None or formation.rate > best.rate * CLEAR_GAIN):
                best = formation
        return self._refined(best)

    def _refined(self, rough: Formation | None) -> Formation | None:
        """The same clusters, cut finely."""
        if rough is None or self._rough is self._table:
            return rough
        drafts = (draft_cluster(self._spec, self._table, draft.peers) or draft for draft in rough.clusters)
        fine = sorted(drafts, key=lambda draft: (draft.interval_s, draft.ids))
        return Formation(tuple(fine), updates_per_s(self._spec, self._table, fine))

    def _searched(self, bound: int, clusters: int) -> Formation | None:
        """What the compiled search finds among so many of the peers; None where every grouping was tried."""
        if len(self._peers) <= EVERY_GROUPING_UP_TO_PEERS or self._seed is None:
            return None
        from ravnest_p2p.core.planning.search.solve import solve  # compiled, and seldom needed

        by_speed = sorted(self._peers, key=lambda c: (-_speed(c), c.peer))
        # A share of the fast ones and of the slow ones.
        peers = [by_speed[n * len(by_speed) // bound] for n in range(bound)]
        most_stages = min(MAX_SEARCHED_STAGES, self._table.count, bound)
        problem = problem_of(self._spec, self._table, peers, most_stages=most_stages, clusters=clusters)
        try:
            layout = solve(problem, seed=self._seed, budget="quick")
        except PlanError:
            return None
        drafts = (
            draft_cluster(self._spec, self._table, [peers[i] for i in cluster.peers])
            for cluster in layout.clusters
        )
        fitting = sorted((d for d in drafts if d is not None), key=lambda d: (d.interval_s, d.ids))
        if not fitting or len(fitting) < clusters:
            return None
        return Formation(tuple(fitting), updates_per_s(self._spec, self._table, fitting))

    def _shapes(self, bound: int, clusters: int) -> list[tuple[int, int]]:
        """(stages, clusters), fewest peers first, of these fewest stages first."""
        most_stages = min(MAX_STAGES, self._table.count, bound)
        all_stages = [self._spec.stages] if self._spec.stages else list(range(1, most_stages + 1))
        shapes = [
            (stages, count)
            for stages in all_stages
            for count in ([clusters] if clusters else range(1, min(MAX_CLUSTERS, bound // stages) + 1))
            if stages * count <= bound and stages <= self._table.count
        ]
        return sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape[0]))

    def _fastest_possible(self, peers: int) -> float:
        """Updates a second of the fastest peers if links took no time and layers could be cut at will."""
        flops = sum(sorted((peer.flops for peer in self._peers), reverse=True)[:peers])
        update_flops = self._table.flops(0, self._table.count) * self._spec.microbatches_per_update
        return flops / max(update_flops, 1.0)

    def _best_of_shape(self, stages: int, count: int) -> Formation | None:
        found: list[tuple[Formation, float, tuple[tuple[PeerId, ...], ...]]] = []
        for groups in self._groupings(stages, count):
            drafts = [self._draft(group) for group in groups]
            fitting = [draft for draft in drafts if draft is not None]
            if len(fitting) < count:
                continue
            fitting.sort(key=lambda draft: (draft.interval_s, draft.ids))
            rate = updates_per_s(self._spec, self._rough, fitting)
            unlike = round(sum(_unlikeness(group) for group in groups), 6)
            found.append((Formation(tuple(fitting), rate), unlike, tuple(d.ids for d in fitting)))
        if not found:
            return None
        good_enough = max(formation.rate for formation, _, _ in found) * NEAR_BEST
        return min((f for f in found if f[0].rate >= good_enough), key=lambda f: f[1:])[0]

    def _groupings(self, stages: int, count: int) -> Iterator[list[Group]]:
        peers = self._peers
        if len(peers) < stages * count:
            return
        if len(peers) <= EVERY_GROUPING_UP_TO_PEERS and comb(len(peers), stages) <= _EVERY_GROUPING_UP_TO:
            yield from _every_grouping(tuple(peers), stages, count)
            return
        by_speed = sorted(peers, key=lambda c: (-_speed(c), c.peer))
        by_memory = sorted(peers, key=lambda c: (-c.memory_bytes, c.peer))
        wanted = stages * count
        fastest = by_speed[:wanted]
        yield [tuple(fastest[i : i + stages]) for i in range(0, wanted, stages)]
        yield _near(by_speed, stages, count)
        yield _dealt(by_memory[:wanted], count)
        yield _dealt(sorted(fastest, key=lambda c: (-c.memory_bytes, c.peer)), count)

    def _draft(self, group: Group) -> Draft | None:
        key = tuple(sorted(peer.peer for peer in group))
        if key not in self._drafts:
            drafts = [draft_cluster(self._spec, self._rough, order) for order in _orders(group)]
            self._drafts[key] = min(
                (draft for draft in drafts if draft is not None),
                key=lambda draft: (draft.interval_s, draft.ids),
                default=None,
            )
        return self._drafts[key]


def _gain_wanted(best: Formation, other: Formation) -> float:
    """How many times faster another formation must be: clearly, where it takes more peers."""
    count, more = (sum(len(draft.peers) for draft in each.clusters) for each in (best, other))
    return CLEAR_GAIN if more > count else 1.0


def _speed(peer: Capability) -> float:
    """Ranks peers by compute and link together."""
    return peer.flops * link_bps(peer)


def _unlikeness(group: Group) -> float:
    return sum(dissimilarity(a, b) for a, b in combinations(group, 2))


def _every_grouping(peers: Group, stages: int, count: int) -> Iterator[list[Group]]:
    """All ways to choose `count` unordered groups of `stages` peers."""
    if count == 0:
        yield []
        return
    for at in range(len(peers) - stages * count + 1):
        first, rest = peers[at], peers[at + 1 :]
        for others in combinations(rest, stages - 1):
            left = tuple(peer for peer in rest if peer not in others)
            for groups in _every_grouping(left, stages, count - 1):
                yield [(first, *others), *groups]


def _near(peers: Sequence[Capability], stages: int, count: int) -> list[Group]:
    """Each group: the first peer left, and those nearest to it."""
    left = list(peers)
    groups: list[Group] = []
    for _ in range(count):
        seed = left[0]
        nearest = sorted(left[1:], key=_farness(seed))
        groups.append((seed, *nearest[: stages - 1]))
        chosen = {peer.peer for peer in groups[-1]}
        left = [peer for peer in left if peer.peer not in chosen]
    return groups


def _farness(origin: Capability) -> Callable[[Capability], tuple[float, PeerId]]:
    return lambda peer: (predicted_rtt_s(origin.coordinate, peer.coordinate), peer.peer)


def _dealt(peers: Sequence[Capability], count: int) -> list[Group]:
    """Peers dealt out to and fro, so that every group gets large and small ones."""
    groups: list[list[Capability]] = [[] for _ in range(count)]
    for n, peer in enumerate(peers):
        turn, seat = divmod(n, count)
        groups[seat if turn % 2 == 0 else count - 1 - seat].append(peer)
    return [tuple(group) for group in groups]


def _orders(group: Group) -> list[Group]:
    """Pipeline orders worth trying: all of a small group, else by memory, by speed, a chain of neighbours."""
    if len(group) <= _EVERY_ORDER_UP_TO:
        return list(permutations(group))
    by_memory = tuple(sorted(group, key=lambda c: (-c.memory_bytes, c.peer)))
    by_speed = tuple(sorted(group, key=lambda c: (-c.flops, c.peer)))
    chain = [by_speed[0]]
    while len(chain) < len(group):
        left = [peer for peer in group if peer not in chain]
        chain.append(min(left, key=_farness(chain[-1])))
    return list(dict.fromkeys((by_memory, by_speed, tuple(chain))))
