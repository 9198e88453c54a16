"""What limits a cluster is named rightly, and every gain that is promised can be had."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ravnest_p2p.core.planning.explain import explain, faster_uplinks, limit_of, one_more
from ravnest_p2p.core.planning.instance import parse_problem
from ravnest_p2p.core.planning.layout import Cluster, Layout
from ravnest_p2p.core.planning.objective import cluster_interval_s, score
from ravnest_p2p.core.planning.problem import Problem
from ravnest_p2p.core.planning.search.finish import finished
from ravnest_p2p.core.planning.search.solve import solve
from ravnest_p2p.testing.planning_problems import instance


def even(**changes: dict[str, Any]) -> Problem:
    """Five equal peers in one place, and changes of single ones, such as p1={"flops": 1e9}."""
    made = instance("gpt350m", 5, 1, layers=6)
    for n, peer in enumerate(made["peers"]):
        peer |= {"mem_bytes": 50e9, "flops": 5e12, "up_mbps": 900.0, "down_mbps": 900.0, "region": 0}
        peer |= {"access_ms": 1.0} | changes.get(f"p{n}", {})
    return parse_problem(made)


PAIR = Cluster((0, 1), (3,))


def test_the_slower_computer_limits() -> None:
    limit = limit_of(even(p1={"flops": 1e12}), Cluster((0, 1), (5,)))
    assert (limit.kind, limit.stage, limit.peer) == ("compute", 1, 1)


def test_the_slower_line_limits() -> None:
    limit = limit_of(even(p0={"up_mbps": 1.0}), PAIR)
    assert (limit.kind, limit.peer) == ("line", 0)


def test_a_far_neighbour_limits_by_latency() -> None:
    limit = limit_of(even(p1={"region": 4, "access_ms": 3000.0}), PAIR)
    assert (limit.kind, limit.peer) == ("latency", None)


def test_a_full_neighbour_is_named_rather_than_the_stage_that_waits_for_it() -> None:
    state = even().layers.state_bytes
    problem = even(p1={"mem_bytes": 1.2 * (state[6] - state[4])}, p0={"flops": 1e12})
    limit = limit_of(problem, Cluster((0, 1), (4,)))
    assert (limit.kind, limit.stage, limit.peer) == ("memory", 0, 1)
    assert limit_of(even(p0={"flops": 1e12}), Cluster((0, 1), (4,))).kind == "compute"


def test_a_thin_flow_limits_the_link() -> None:
    problem = even()
    thin = tuple(tuple(flow / 1e4 for flow in row) for row in problem.flow_bytes_s)
    wide = tuple(peer._replace(up_bytes_s=1e12, down_bytes_s=1e12) for peer in problem.peers)
    limit = limit_of(replace(problem, flow_bytes_s=thin, peers=wide), PAIR)
    assert limit.kind in ("link", "latency")


@pytest.mark.parametrize("seed", range(3))
def test_a_limit_is_the_interval(seed: int) -> None:
    problem = parse_problem(instance("gpt1.3b", 30, seed))
    layout = solve(problem, budget="quick")
    for cluster in layout.clusters:
        assert limit_of(problem, cluster).seconds == pytest.approx(cluster_interval_s(problem, cluster))


def test_a_faster_uplink_brings_what_is_promised() -> None:
    problem = parse_problem(instance("gpt1.3b", 30, 1))
    layout = solve(problem, budget="quick")
    before = score(problem, layout).objective
    found = faster_uplinks(problem, layout)
    assert found
    best = found[0]
    assert best.peer is not None
    peers = list(problem.peers)
    peers[best.peer] = peers[best.peer]._replace(up_bytes_s=2 * peers[best.peer].up_bytes_s)
    after = score(replace(problem, peers=tuple(peers)), layout).objective
    assert after - before == pytest.approx(best.gain)


def test_one_more_peer_helps_where_one_is_missing() -> None:
    problem = even()
    small = [peer._replace(memory_bytes=0.6 * problem.layers.held_bytes[-1]) for peer in problem.peers]
    lonely = replace(problem, peers=tuple(small))
    assert one_more(lonely, finished(lonely, [Cluster((0, 1), (3,)), Cluster((2, 3), (3,))])).gain > 0.0


def test_an_explanation_has_all_clusters() -> None:
    problem = even()
    layout = finished(problem, [PAIR, Cluster((2, 3), (3,))])
    why = explain(problem, layout)
    assert len(why.limits) == 2
    assert why.slowest in range(5)
    alone = explain(problem, Layout((PAIR,)))
    assert alone.slowest is None
