"""What a plan is worth: effective samples a second.

    F = round / (round + averaging) · Σ over the clusters of rate · stages · spread · moving · availability

A cluster's rate is a micro-batch over its interval τ, the longest of: a stage's computation, its transfers
over both its cuts, a link's flow, and the round trip over the window (Little's law). Averaging takes
2(C−1)/C of the slowest peer's bytes, and latency for each step of the rings or of the grid. Any peer can
judge a plan by it, for it costs a few operations for each stage.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ravnest_p2p.core.errors import PlanError
from ravnest_p2p.core.planning.layout import Cluster, Layout
from ravnest_p2p.core.planning.problem import Layers, Peer, Problem, Rules

SLACK = 1e-9
"""Relative, for a number that was computed in another order."""


@dataclass(frozen=True, slots=True)
class Worth:
    """Of one cluster.

    Attributes:
        interval_s: τ, from one micro-batch to the next.
        rate: samples a second.
        stages, spread, moving, availability: factors from 0 to 1, see the module.
    """

    interval_s: float
    rate: float
    stages: float
    spread: float
    moving: float
    availability: float

    @property
    def value(self) -> float:
        return self.rate * self.stages * self.spread * self.moving * self.availability


@dataclass(frozen=True, slots=True)
class Score:
    """Of a feasible plan.

    Attributes:
        clusters: in the plan's order.
        transfer_s, steps_s: an averaging's bytes on the slowest line, and its latency.
        objective: effective samples a second.
        moved: stages whose peer did not hold all their layers before.
    """

    clusters: tuple[Worth, ...]
    transfer_s: float
    steps_s: float
    objective: float
    moved: int

    @property
    def averaging_s(self) -> float:
        return self.transfer_s + self.steps_s


def score(problem: Problem, layout: Layout) -> Score:
    """Judge a plan.

    Raises:
        PlanError: it is infeasible, and how.
    """
    check(problem, layout)
    backed = {primary: standby for standby, primary in layout.standbys}
    worths = tuple(worth(problem, cluster, backed) for cluster in layout.clusters)
    for n, each in enumerate(worths):
        if each.interval_s > problem.rules.slowest_s * (1.0 + SLACK):
            raise PlanError(
                f"cluster {n} takes {each.interval_s:.3g} s for a micro-batch, "
                f"longer than {problem.rules.slowest_s:.3g} s"
            )
    count = len(worths)
    transfer_s = 2.0 * (count - 1) / count * slowest_transfer(problem, layout.clusters)[0]
    steps_s = ring_steps_s(problem, layout.clusters, layout.order, layout.columns)
    round_s = problem.rules.round_s
    value = sum(each.value for each in worths)
    return Score(
        worths,
        transfer_s,
        steps_s,
        value * round_s / (round_s + transfer_s + steps_s),
        _moved(problem, layout),
    )


def check(problem: Problem, layout: Layout) -> None:
    """Refuse a plan that breaks a constraint of structure or memory.

    Raises:
        PlanError: which cluster or standby, and how.
    """
    layers, rules, peers = problem.layers, problem.rules, problem.peers
    if not rules.least_clusters <= len(layout.clusters) <= rules.most_clusters:
        allowed = f"{rules.least_clusters} to {rules.most_clusters}"
        raise PlanError(f"{len(layout.clusters)} clusters, though {allowed} are allowed")
    stage_of: dict[int, tuple[int, int]] = {}
    for n, cluster in enumerate(layout.clusters):
        ranges = cluster.ranges(layers.count)
        if len(ranges) != len(cluster.peers) or any(hi <= lo for lo, hi in ranges):
            raise PlanError(f"cluster {n}: its cuts make no stage for each of {len(cluster.peers)} peers")
        if not rules.least_stages <= len(ranges) <= rules.most_stages:
            allowed = f"{rules.least_stages} to {rules.most_stages}"
            raise PlanError(f"cluster {n}: {len(ranges)} stages, though {allowed} are allowed")
        for peer, (lo, hi) in zip(cluster.peers, ranges, strict=True):
            _unused(peer, stage_of, len(peers), f"cluster {n}")
            stage_of[peer] = lo, hi
            if not problem.fits(peer, lo, hi):
                need, has = layers.held_bytes[hi] - layers.held_bytes[lo], peers[peer].memory_bytes
                raise PlanError(f"cluster {n}: peer {peer} needs {need:.3g} bytes, and has {has:.3g}")
    backed: set[int] = set()
    taken = dict(stage_of)
    for standby, primary in layout.standbys:
        _unused(standby, taken, len(peers), "standbys")
        taken[standby] = 0, 0
        if primary not in stage_of or primary in backed:
            raise PlanError(f"standby {standby}: peer {primary} has no stage, or a standby already")
        backed.add(primary)
        lo, hi = stage_of[primary]
        if not problem.fits(standby, lo, hi):
            raise PlanError(f"standby {standby}: the stage of peer {primary} does not fit")
    wanted = standbys_wanted(problem, len(stage_of))
    if len(backed) < wanted:
        raise PlanError(f"{len(backed)} standbys for {len(stage_of)} stages, though {wanted} are the least")
    count = len(layout.clusters)
    if count > 1 and (sorted(layout.order) != list(range(count)) or not 1 <= layout.columns <= count):
        raise PlanError(f"the rings are no order of {count} clusters in 1 to {count} columns")


def standbys_wanted(problem: Problem, primaries: int) -> int:
    """Least standbys of a plan with so many primaries."""
    return math.ceil(problem.rules.standby_quota * primaries - SLACK)


def worth(problem: Problem, cluster: Cluster, backed: Mapping[int, int]) -> Worth:
    """Of one cluster that fits.

    Args:
        backed: by primary, its standby.
    """
    rules, peers = problem.rules, problem.peers
    ranges = cluster.ranges(problem.layers.count)
    interval_s = cluster_interval_s(problem, cluster)
    loss = sum(
        peers[i].fails_per_s * failure_s(problem, i, backed.get(i), lo, hi, interval_s)
        for i, (lo, hi) in zip(cluster.peers, ranges, strict=True)
    )
    fetch_s = 0.0
    if not rules.moves_are_free:
        fetch_s = max(
            fetched_bytes(problem.layers, peers[i], lo, hi) / peers[i].down_bytes_s
            for i, (lo, hi) in zip(cluster.peers, ranges, strict=True)
        )
    members = [peers[i] for i in cluster.peers]
    return Worth(
        interval_s,
        rules.microbatch / interval_s,
        1.0 / (1.0 + rules.stage_discount * (len(members) - 1)),
        spread_factor(rules, members),
        max(0.0, 1.0 - fetch_s / rules.epoch_s),
        1.0 / (1.0 + loss),
    )


def stage_s(layers: Layers, peer: Peer, lo: int, hi: int) -> float:
    """Least time from one micro-batch to the next of a stage, by its computation and its own line."""
    return max(
        (layers.work[hi] - layers.work[lo]) / peer.flops,
        (layers.crossing[lo] + layers.crossing[hi]) / peer.bytes_s,
    )


def cluster_interval_s(problem: Problem, cluster: Cluster) -> float:
    """τ of a cluster, seconds."""
    layers = problem.layers
    ranges = cluster.ranges(layers.count)
    slowest_s = 0.0
    for s, (i, (lo, hi)) in enumerate(zip(cluster.peers, ranges, strict=True)):
        slowest_s = max(slowest_s, stage_s(layers, problem.peers[i], lo, hi))
        if s + 1 < len(ranges):
            slowest_s = max(slowest_s, layers.crossing[hi] / problem.flow_between(i, cluster.peers[s + 1]))
    return max(slowest_s, round_trip_s(problem, cluster) / problem.rules.window)


def round_trip_s(problem: Problem, cluster: Cluster) -> float:
    """From a micro-batch's start to its gradient's end at the first stage, with nothing else underway."""
    layers = problem.layers
    ranges = cluster.ranges(layers.count)
    around_s = 0.0
    for s, (i, (lo, hi)) in enumerate(zip(cluster.peers, ranges, strict=True)):
        peer = problem.peers[i]
        around_s += (layers.work[hi] - layers.work[lo]) / peer.flops
        if s + 1 < len(ranges):
            j = cluster.peers[s + 1]
            following, out, flow_bytes_s = problem.peers[j], layers.crossing[hi], problem.flow_between(i, j)
            around_s += 2.0 * problem.way_s(i, j)
            around_s += out / min(peer.up_bytes_s, following.down_bytes_s, flow_bytes_s)
            around_s += out / min(following.up_bytes_s, peer.down_bytes_s, flow_bytes_s)
    return around_s


def failure_s(
    problem: Problem, primary: int, standby: int | None, lo: int, hi: int, interval_s: float
) -> float:
    """What one failure of a stage's peer costs, seconds of its cluster's training."""
    rules = problem.rules
    if standby is None:
        return rules.recover_s
    peer = problem.peers[standby]
    slower_s = max(interval_s, stage_s(problem.layers, peer, lo, hi))
    with_it_s = min(rules.recover_s, rules.failover_s + (1.0 - interval_s / slower_s) * rules.epoch_s / 2.0)
    return peer.uptime * with_it_s + (1.0 - peer.uptime) * rules.recover_s


def fetched_bytes(layers: Layers, peer: Peer, lo: int, hi: int) -> float:
    """Of layers [lo, hi), those that the peer does not hold."""
    kept_lo, kept_hi = max(lo, peer.held[0]), min(hi, peer.held[1])
    kept = layers.move_bytes[kept_hi] - layers.move_bytes[kept_lo] if kept_hi > kept_lo else 0.0
    return layers.move_bytes[hi] - layers.move_bytes[lo] - kept


def spread_factor(rules: Rules, members: Sequence[Peer]) -> float:
    """From 0 to 1: 1 for peers of one speed with lines of one rate."""
    spread = _deviation(math.log2(peer.bytes_s) for peer in members)
    spread += _deviation(math.log2(peer.flops) for peer in members)
    return 1.0 / (1.0 + rules.spread_discount * spread)


def slowest_transfer(problem: Problem, clusters: Iterable[Cluster]) -> tuple[float, int]:
    """Longest that any peer takes to send what it averages once, seconds, and which peer."""
    sync = problem.layers.sync_bytes
    return max(
        ((sync[hi] - sync[lo]) / problem.peers[i].bytes_s, i)
        for cluster in clusters
        for i, (lo, hi) in zip(cluster.peers, cluster.ranges(problem.layers.count), strict=True)
    )


def ring_steps_s(problem: Problem, clusters: Sequence[Cluster], order: Sequence[int], columns: int) -> float:
    """Latency of all steps of an averaging: one ring, or the rows and then the columns of a grid.

    A hop between two clusters is as slow as that of the slowest two members. A short last row serves several
    columns, so that every column meets every row.
    """
    count = len(clusters)
    if count < 2:
        return 0.0
    profiles = [access_by_region(problem, cluster) for cluster in clusters]
    rows = [order[at : at + columns] for at in range(0, count, columns)]
    along_s = max(_ring_s(problem, profiles, row) for row in rows)
    down_s = max(
        _ring_s(problem, profiles, [row[column % len(row)] for row in rows]) for column in range(columns)
    )
    return 2.0 * (columns - 1) * along_s + 2.0 * (len(rows) - 1) * down_s


def access_by_region(problem: Problem, cluster: Cluster) -> dict[int, float]:
    """By region, the longest access of the cluster's members there, seconds."""
    found: dict[int, float] = {}
    for i in cluster.peers:
        peer = problem.peers[i]
        found[peer.region] = max(found.get(peer.region, 0.0), peer.access_s)
    return found


def hop_s(problem: Problem, one: Mapping[int, float], other: Mapping[int, float]) -> float:
    """One way between the slowest two members of two clusters, each given by `access_by_region`."""
    return max(
        problem.latency_s[a][b] + access_a + access_b
        for a, access_a in one.items()
        for b, access_b in other.items()
    )


def _ring_s(problem: Problem, profiles: Sequence[Mapping[int, float]], ring: Sequence[int]) -> float:
    """Slowest hop of a ring; 0 for one cluster alone."""
    if len(ring) < 2:
        return 0.0
    return max(
        hop_s(problem, profiles[a], profiles[b]) for a, b in zip(ring, [*ring[1:], ring[0]], strict=True)
    )


def _deviation(values: Iterable[float]) -> float:
    listed = list(values)
    mean = sum(listed) / len(listed)
    return math.sqrt(sum((value - mean) ** 2 for value in listed) / len(listed))


def _moved(problem: Problem, layout: Layout) -> int:
    if problem.rules.moves_are_free:
        return 0
    return sum(
        not (problem.peers[i].held[0] <= lo and hi <= problem.peers[i].held[1])
        for cluster in layout.clusters
        for i, (lo, hi) in zip(cluster.peers, cluster.ranges(problem.layers.count), strict=True)
    )


def _unused(peer: int, used: Mapping[int, object], count: int, where: str) -> None:
    if not 0 <= peer < count:
        raise PlanError(f"{where}: there is no peer {peer}")
    if peer in used:
        raise PlanError(f"{where}: peer {peer} is used twice")
