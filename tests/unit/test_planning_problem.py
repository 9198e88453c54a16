"""Files that describe a planning problem or a plan are taken in whole, or refused with the field's name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ravnest_p2p.core.errors import PlanningProblemError
from ravnest_p2p.core.planning.instance import MBPS, parse_problem
from ravnest_p2p.core.planning.layout import Cluster, Layout, parse_layout
from ravnest_p2p.testing.planning_problems import instance

SMALL = instance("gpt350m", 4, 1, layers=6)


def changed(path: str, value: Any) -> dict[str, Any]:
    """The small instance with one value replaced; `...` removes it."""
    made = copy.deepcopy(SMALL)
    *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    at: Any = made
    for step in way:
        at = at[step]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return made


def test_numbers_become_base_units() -> None:
    problem = parse_problem(SMALL)
    given_, peer = SMALL["peers"][0], problem.peers[0]
    assert peer.up_bytes_s == given_["up_mbps"] * MBPS
    assert peer.access_s == given_["access_ms"] / 1000
    assert peer.fails_per_s == given_["fail_per_h"] / 3600
    assert peer.bytes_s == min(peer.up_bytes_s, peer.down_bytes_s)
    assert problem.layers.work[1] == SMALL["hyper"]["microbatch"] * SMALL["model"]["flops_per_sample"][0]
    assert problem.layers.crossing[0] == problem.layers.crossing[-1] == 0.0
    assert problem.rules.slowest_s == 900.0 / 8


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("format", "ravnest-cluster-instance/2", "format"),
        ("model.layers", 0, "model.layers"),
        ("model.layers", 7, "model.flops_per_sample"),
        ("model.state_bytes.2", -1.0, "model.state_bytes[2]"),
        ("model.state_bytes.2", float("nan"), "model.state_bytes[2]"),
        ("hyper.microbatch", 0, "hyper.microbatch"),
        ("hyper.window", ..., "hyper.window"),
        ("hyper.max_stages", 2.5, "hyper.max_stages"),
        ("hyper.max_stages", True, "hyper.max_stages"),
        ("cold_start", "yes", "cold_start"),
        ("net.latency_ms.0.1", -1.0, "net.latency_ms[0][1]"),
        ("net.latency_ms.0", [1.0], "net.latency_ms"),
        ("net.flow_cap_mbps.0.0", 0.0, "net.flow_cap_mbps[0][0]"),
        ("peers.1", [], "peers[1]"),
        ("peers.1.region", 8, "peers[1].region"),
        ("peers.1.flops", 0.0, "peers[1].flops"),
        ("peers.1.up_mbps", ..., "peers[1].up_mbps"),
        ("peers.1.uptime", 1.5, "peers[1].uptime"),
        ("peers.1.prev", [3, 9], "peers[1].prev"),
        ("peers.1.prev", [3, 1], "peers[1].prev"),
        ("peers", {}, "peers"),
    ],
)
def test_what_is_wrong_is_named(path: str, value: Any, named: str) -> None:
    with pytest.raises(PlanningProblemError) as refused:
        parse_problem(changed(path, value))
    assert named in str(refused.value)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
PATHS = ["model", "model.layers", "model.sync_bytes", "hyper", "net", "net.latency_ms", "peers", "peers.2"]
PATHS += [f"peers.0.{name}" for name in SMALL["peers"][0]] + [f"hyper.{name}" for name in SMALL["hyper"]]


@settings(max_examples=300, deadline=None)
@given(path=st.sampled_from(PATHS), value=JUNK)
def test_rubbish_is_refused_in_order_or_means_something(path: str, value: Any) -> None:
    try:
        problem = parse_problem(changed(path, value))
    except PlanningProblemError:
        return
    assert problem.layers.count == 6


@given(value=JUNK)
def test_rubbish_is_no_plan(value: Any) -> None:
    with pytest.raises(PlanningProblemError):
        parse_layout(value)


def test_a_plan_survives_its_json() -> None:
    layout = Layout((Cluster((2, 0), (3,)), Cluster((1,), ())), ((3, 0),), (1, 0), 2)
    assert parse_layout(layout.to_json()) == layout


def test_a_plan_of_one_cluster_needs_no_ring() -> None:
    layout = parse_layout({"clusters": [{"peers": [0], "cuts": []}]})
    assert layout == Layout((Cluster((0,), ()),))


def with_hyper(peer: dict[str, Any], **hyper: float) -> Any:
    made = copy.deepcopy(SMALL)
    made["hyper"] |= hyper
    made["peers"][0] |= peer
    return parse_problem(made).peers[0]


def test_what_is_relayed_or_unsure_counts_for_less_only_where_that_is_asked_for() -> None:
    plain = parse_problem(SMALL).peers[0]
    unsure = {"reached": "relayed", "spread": 0.5}
    assert with_hyper(unsure) == plain
    relayed = with_hyper(unsure, relayed_share=0.5, relayed_ms=20.0)
    assert relayed.up_bytes_s == plain.up_bytes_s / 2
    assert relayed.access_s == pytest.approx(plain.access_s + 0.02)
    assert relayed.flops == plain.flops
    doubted = with_hyper(unsure, doubt=2.0)
    assert doubted.flops == plain.flops / 2
    assert doubted.down_bytes_s == plain.down_bytes_s / 2
    behind = with_hyper({"reached": "symmetric"}, symmetric_share=0.25)
    assert behind.up_bytes_s == plain.up_bytes_s / 4


def test_memory_beside_the_gpu_holds_what_is_in_flight_but_no_state() -> None:
    layers = parse_problem(SMALL).layers
    state, held = layers.state_bytes[-1], layers.held_bytes[-1]

    def fits(device: float, host: float) -> bool:
        return parse_problem(
            changed("peers.0", SMALL["peers"][0] | {"mem_bytes": device, "host_mem_bytes": host})
        ).fits(0, 0, 6)

    assert fits(held, 0.0)
    assert not fits(state, 0.0)
    assert fits(state, held - state)
    assert not fits(0.9 * state, held)
