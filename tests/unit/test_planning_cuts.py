"""Memory model and stage cuts."""

from __future__ import annotations

import pytest

from ravnest_p2p.core.pipeline.correction import correction_bytes
from ravnest_p2p.core.planning.cost import draft_cluster, need_of, round_updates, staleness_limit
from ravnest_p2p.core.planning.cuts import LayerTable, stage_cuts
from ravnest_p2p.core.planning.memory import (
    PROCESS_OVERHEAD_BYTES,
    carried_versions,
    speculative_copies,
    stage_memory,
    stage_memory_bytes,
)
from ravnest_p2p.core.types import LayerCost, OptimizerSpec
from tests.unit.planning_cases import MB, peer, spec


def free(stage: int, lo: int, hi: int) -> int:
    return 0


def uniform(count: int, out_bytes: int = 0) -> list[LayerCost]:
    return [LayerCost(1e9, MB, MB, out_bytes) for _ in range(count)]


def test_gradients_are_counted_beside_what_is_still_there() -> None:
    """A micro-batch's activations are gone when all its gradients have come."""
    memory = [
        stage_memory(
            param_bytes=1000, activation_bytes=held, optimizer=OptimizerSpec("sgd", 0.1), staleness=2,
            microbatches_per_update=4, last=False,
        )
        for held in (0, 200, 1000, 1800)
    ]  # fmt: skip
    assert [found.momentary for found in memory] == [1000, 800, 0, 0]
    assert [found.tensors - memory[0].tensors for found in memory] == [0, 400, 2000, 4400]


def test_memory_counts_every_copy() -> None:
    need = stage_memory_bytes(
        param_bytes=1000,
        activation_bytes=100,
        optimizer=OptimizerSpec("adamw", 0.1),
        staleness=2,
        microbatches_per_update=4,
        last=False,
    )
    assert need == PROCESS_OVERHEAD_BYTES + 1.6 * (1000 * (1 + 1 + 2 + 0.5) + (1000 - 100) + 100 * 3)


@pytest.mark.parametrize(
    ("optimizer", "copies"), [("sgd", 3), ("adam", 5), ("adamw", 5), ("muon", 5), ("lamb", 5)]
)
def test_last_stage_needs_no_scratch_copy(optimizer: str, copies: int) -> None:
    need = stage_memory_bytes(
        param_bytes=1000,
        activation_bytes=0,
        optimizer=OptimizerSpec(optimizer, 0.1),
        staleness=0,
        microbatches_per_update=4,
        last=True,
    )
    assert need == PROCESS_OVERHEAD_BYTES + 1.6 * 1000 * copies


@pytest.mark.parametrize(
    ("correction", "carried", "kept"),
    [
        ("speculative", 0, 500),
        ("speculative", 200, 600),
        ("speculative", 5000, 1000),
        ("stash", 0, 1000),
        ("none", 0, 0),
    ],
)
def test_what_the_correction_keeps(correction: str, carried: int, kept: int) -> None:
    """Half of each weight, all of those that cross a cut, never more than all."""
    assert correction_bytes(correction, 1000, carried) == kept
    found = stage_memory(
        param_bytes=1000, activation_bytes=0, optimizer=OptimizerSpec("sgd", 0.1), staleness=3,
        microbatches_per_update=4, last=False, carried_bytes=carried, correction=correction,
    )  # fmt: skip
    assert found.speculative == 2 * kept


def test_window_beyond_half_an_update_needs_two_scratch_copies() -> None:
    assert speculative_copies(2, 4, last=False) == 1
    assert speculative_copies(3, 4, last=False) == 2


def test_shared_parameters_are_counted_where_they_cross() -> None:
    assert [carried_versions(tau, 4) for tau in (0, 1, 2, 3, 4)] == [1, 2, 2, 3, 3]
    layers = [LayerCost(1e9, MB, 0, 9 * MB, carried) for carried in (0, 5 * MB, 7 * MB, 0, 2 * MB)]
    table = LayerTable(layers)
    assert table.carried_bytes(0, 5) == 0
    ranges = {(lo, hi): table.carried_bytes(lo, hi) for lo in range(5) for hi in range(lo + 1, 6)}
    assert (ranges[0, 1], ranges[0, 2], ranges[1, 2], ranges[2, 5], ranges[4, 5]) == (
        0,
        5 * MB,
        5 * MB,
        7 * MB,
        0,
    )
    del ranges[0, 5]
    for (lo, hi), carried in ranges.items():
        assert all(carried <= more for (a, b), more in ranges.items() if a <= lo and hi <= b)
    found = stage_memory(
        param_bytes=MB, activation_bytes=0, optimizer=OptimizerSpec("sgd", 0.1), staleness=1,
        microbatches_per_update=4, last=False, carried_bytes=7 * MB,
    )  # fmt: skip
    assert found.carried == 21 * MB


def test_equal_peers_get_equal_stages() -> None:
    assert stage_cuts(uniform(6), [peer("a"), peer("b"), peer("c")], need=free) == [(0, 2), (2, 4), (4, 6)]


def test_faster_peer_gets_more() -> None:
    assert stage_cuts(uniform(8), [peer("a", flops=3e10), peer("b")], need=free) == [(0, 6), (6, 8)]


def test_cheap_cut_wins_among_equally_slow_stages() -> None:
    layers = [LayerCost(1e9, 0, 0, out) for out in (500, 500, 10, 500, 500)]
    assert stage_cuts(layers, [peer("a"), peer("b")], need=free) == [(0, 3), (3, 5)]


def test_slow_link_moves_the_cut_to_where_little_crosses() -> None:
    layers = [LayerCost(1e9, 0, 0, out) for out in (10, 50 * MB, 50 * MB, 50 * MB)]
    slow = [peer("a", bps=1e7), peer("b", bps=1e7)]
    assert stage_cuts(layers, slow, need=free) == [(0, 1), (1, 4)]


def test_memory_bounds_a_stage() -> None:
    def need(stage: int, lo: int, hi: int) -> int:
        return (hi - lo) * 1000 * MB

    small, large = peer("small", memory_mb=1000), peer("large", memory_mb=7000)
    assert stage_cuts(uniform(8), [small, large], need=need) == [(0, 1), (1, 8)]
    assert stage_cuts(uniform(9), [small, large], need=need) is None


def test_long_model_is_cut_at_cheap_places_only() -> None:
    layers = [LayerCost(1e9, MB, MB, 10 if n % 10 == 9 else 5000) for n in range(1000)]
    table = LayerTable(layers, most_blocks=64)
    assert len(table.cuts) <= 66
    assert all(at % 10 == 0 for at in table.cuts)
    found = stage_cuts(table, [peer("a"), peer("b")], need=free)
    assert found is not None
    assert found[0][1] == pytest.approx(500, abs=20)
    assert found[0][1] == found[1][0]
    assert LayerTable(layers[:64], most_blocks=64).cuts == list(range(65))


def test_no_cuts_without_a_layer_for_every_peer() -> None:
    assert stage_cuts(uniform(1), [peer("a"), peer("b")], need=free) is None
    assert stage_cuts(uniform(3), [], need=free) is None
    assert stage_cuts(uniform(3), [peer("a", flops=0.0)], need=free) is None


def test_staleness_follows_latency_within_bounds() -> None:
    job = spec(8, m=8)
    table = LayerTable(job.layers)
    near = draft_cluster(job, table, [peer("a"), peer("b"), peer("c"), peer("d")])
    far = draft_cluster(job, table, [peer(n, at_s=(k * 0.2, 0.0)) for k, n in enumerate("abcd")])
    assert near is not None
    assert far is not None
    assert far.staleness[0] > near.staleness[0] >= 3
    assert near.staleness[-1] == far.staleness[-1] == 0
    assert max(far.staleness) <= staleness_limit(job)
    assert list(far.staleness) == sorted(far.staleness, reverse=True)


def test_staleness_shrinks_where_memory_ends() -> None:
    job = spec(2, param_mb=1, m=8)
    table = LayerTable(job.layers)
    lowest = need_of(job, table, 2)(0, 0, 1)
    far = peer("z", at_s=(1.0, 0.0))
    tight = draft_cluster(job, table, [peer("a", memory_mb=lowest // MB + 1), far])
    roomy = draft_cluster(job, table, [peer("a"), far])
    assert tight is not None
    assert roomy is not None
    assert tight.staleness == (1, 0)
    assert roomy.staleness == (8, 0)
    assert tight.interval_s > roomy.interval_s


def test_synchronous_job_has_no_staleness() -> None:
    job = spec(8, staleness_bound=0)
    draft = draft_cluster(job, LayerTable(job.layers), [peer("a"), peer("b")])
    assert draft is not None
    assert draft.staleness == (0, 0)


def test_fast_clusters_do_more_updates_a_round() -> None:
    job = spec(8, kappa=4)
    table = LayerTable(job.layers)
    fast = draft_cluster(job, table, [peer("a", flops=3e10)])
    slow = draft_cluster(job, table, [peer("b", flops=1e10)])
    crawling = draft_cluster(job, table, [peer("c", flops=1e7)])
    assert fast is not None
    assert slow is not None
    assert crawling is not None
    assert round_updates(job, [fast, slow]) == (6, 2)
    assert round_updates(job, [slow, slow]) == (4, 4)
    assert round_updates(job, [fast, crawling])[1] == 1
