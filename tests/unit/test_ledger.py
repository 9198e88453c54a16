"""Data order, shares of clusters, and a ledger that names what a broken history did."""

from __future__ import annotations

from collections import Counter

import pytest

from ravnest_p2p.core.errors import OurFault
from ravnest_p2p.core.ledger import Breach, DataOrder, Ledger, Shares, sample_of
from ravnest_p2p.core.types import Generation

FIRST, SECOND, THIRD = Generation(1, 0, "a"), Generation(1, 1, "b"), Generation(4, 0, "c")


def train(
    ledger: Ledger, generation: Generation, shares: Shares, rounds: range, *, commit: bool = True
) -> None:
    """Claim everything of these rounds, and commit them."""
    for r in rounds:
        for c, kappa in enumerate(shares.updates_per_round):
            for j in range(shares.updates_in_round(c, r)):
                ledger.claim(generation, c, r * kappa + j, shares.batch(c, r * kappa + j))
        if commit:
            ledger.commit(generation, r)


def breaches(ledger: Ledger) -> set[Breach]:
    return {violation.breach for violation in ledger.violations()}


def test_the_stream_never_changes() -> None:
    order = DataOrder(samples=10, microbatch_size=3, microbatches_per_update=2, seed=7)
    assert [order.sample_at(i) for i in range(10)] == [7, 3, 2, 6, 4, 5, 1, 9, 0, 8]
    assert order.microbatch(1, 1) == [order.sample_at(i) for i in (9, 10, 11)]


def test_a_micro_batch_is_the_same_whichever_cluster_trains_it() -> None:
    order = DataOrder(samples=100, microbatch_size=3, microbatches_per_update=2, seed=7)
    first, second = Shares(0, 9, (2, 1)), Shares(3, 9, (1, 2))
    assert sample_of(order, first, 0, 7) == sample_of(order, second, 1, 1)  # batch 4, second micro-batch
    assert sample_of(order, first, 0, 7).batch == 4
    assert sample_of(order, first, 0, 7).indices == order.microbatch(4, 1)
    seeds = [sample_of(order, first, 0, i).seed for i in range(4)]
    assert [seed - seeds[0] for seed in seeds] == [0, 1, 2, 3]
    with pytest.raises(OurFault, match="no update 3"):
        sample_of(order, first, 1, 6)


def test_seeds_and_passes_shuffle_differently() -> None:
    streams = {
        tuple(DataOrder(50, 1, 1, seed).sample_at(p * 50 + i) for i in range(50))
        for seed in (0, 1, -1, 1 << 80 | 2)
        for p in range(5)
    }
    assert len(streams) == 20


def test_every_permutation_is_about_as_likely() -> None:
    seen = Counter(tuple(DataOrder(4, 1, 1, seed).sample_at(i) for i in range(4)) for seed in range(4800))
    assert len(seen) == 24
    assert min(seen.values()) > 140
    assert max(seen.values()) < 260


def test_batches_in_a_pass_leave_no_sample_out() -> None:
    order = DataOrder(samples=10, microbatch_size=2, microbatches_per_update=2, seed=0)
    assert [order.batches_in(passes) for passes in (0, 1, 2, 4)] == [0, 3, 5, 10]


def test_impossible_orders_are_our_fault() -> None:
    for numbers in ((0, 1, 1), (1, 0, 1), (1, 1, 0)):
        with pytest.raises(OurFault):
            DataOrder(*numbers, seed=0)
    order = DataOrder(10, 2, 2, 0)
    for batch, k in ((-1, 0), (0, 2), (0, -1)):
        with pytest.raises(OurFault):
            order.microbatch(batch, k)
    with pytest.raises(OurFault):
        order.sample_at(-1)


def test_shares_follow_the_order_of_clusters() -> None:
    shares = Shares(batches_done=10, total_batches=22, updates_per_round=(2, 3))
    assert shares.rounds == 3
    assert [shares.batch(0, u) for u in range(shares.local_updates(0))] == [10, 11, 15, 16, 20, 21]
    assert [shares.batch(1, u) for u in range(shares.local_updates(1))] == [12, 13, 14, 17, 18, 19]
    assert [shares.weights(r) for r in range(3)] == [(2, 3), (2, 3), (2, 0)]
    assert [shares.batches_after(r) for r in (-1, 0, 1, 2)] == [10, 15, 20, 22]


def test_a_finished_job_has_no_rounds() -> None:
    shares = Shares(5, 5, (2, 3))
    assert (shares.rounds, shares.local_updates(0), shares.batches_after(-1)) == (0, 0, 5)


def test_what_is_not_shared_out_is_our_fault() -> None:
    shares = Shares(0, 7, (2, 3))
    for cluster, update in ((0, 4), (1, 3), (2, 0), (-1, 0), (0, -1)):
        assert not shares.has(cluster, update)
        with pytest.raises(OurFault):
            shares.batch(cluster, update)
    with pytest.raises(OurFault):
        shares.updates_in_round(0, 2)
    for numbers in ((0, 5, ()), (0, 5, (1, 0)), (6, 5, (1,)), (-1, 5, (1,))):
        with pytest.raises(OurFault):
            Shares(*numbers)


def test_a_crash_and_a_fallback_still_count_each_batch_once() -> None:
    ledger, total = Ledger(), 40
    first = Shares(0, total, (2, 3))
    ledger.open(FIRST, first)
    train(ledger, FIRST, first, range(4))
    train(ledger, FIRST, first, range(4, 5), commit=False)
    second = Shares(15, total, (4,))
    ledger.open(SECOND, second)
    assert ledger.batches_done == 15
    train(ledger, SECOND, second, range(2))
    assert ledger.batches_done == 23
    third = Shares(23, total, (1, 1, 4))
    ledger.open(THIRD, third)
    train(ledger, THIRD, third, range(third.rounds))
    assert ledger.batches_done == total
    assert ledger.violations() == []


def opened() -> tuple[Ledger, Shares]:
    ledger, shares = Ledger(), Shares(0, 20, (2, 3))
    ledger.open(FIRST, shares)
    return ledger, shares


def test_a_lost_batch_is_named() -> None:
    ledger, _ = opened()
    for cluster, update, batch in ((0, 0, 0), (0, 1, 1), (1, 0, 2), (1, 2, 4)):
        ledger.claim(FIRST, cluster, update, batch)
    ledger.commit(FIRST, 0)
    assert [str(violation) for violation in ledger.violations()] == [
        "lost: batch 3 is in no update that counts"
    ]


def test_a_wrong_batch_counts_only_once_committed() -> None:
    ledger, shares = opened()
    train(ledger, FIRST, shares, range(1))
    ledger.claim(FIRST, 0, 2, 0)
    assert ledger.violations() == []
    ledger.commit(FIRST, 1)
    assert breaches(ledger) == {Breach.WRONG_BATCH, Breach.APPLIED_TWICE, Breach.LOST}


def test_the_same_update_twice_is_named() -> None:
    ledger, _ = opened()
    ledger.claim(FIRST, 1, 0, 2)
    ledger.claim(FIRST, 1, 0, 2)
    assert breaches(ledger) == {Breach.CLAIMED_TWICE}


@pytest.mark.parametrize(("cluster", "update"), [(2, 0), (0, 8), (-1, 0), (0, -1)])
def test_an_update_that_is_not_due_is_named(cluster: int, update: int) -> None:
    ledger, _ = opened()
    ledger.claim(FIRST, cluster, update, 0)
    assert breaches(ledger) == {Breach.WRONG_BATCH}


def test_a_broken_generation_commits_no_more() -> None:
    ledger, shares = opened()
    train(ledger, FIRST, shares, range(1))
    ledger.abandon(FIRST)
    train(ledger, FIRST, shares, range(1, 2))
    assert breaches(ledger) == {Breach.BROKEN_LINEAGE}
    assert ledger.batches_done == 5


def test_an_old_generation_commits_no_more() -> None:
    ledger, shares = opened()
    train(ledger, FIRST, shares, range(1))
    ledger.open(SECOND, Shares(5, 20, (2, 3)))
    ledger.commit(FIRST, 1)
    assert breaches(ledger) == {Breach.BROKEN_LINEAGE}


def test_lineage_breaks_are_named() -> None:
    for generation, done in ((FIRST, 5), (Generation(1, 0, "z"), 5), (Generation(0, 9, "a"), 5), (SECOND, 7)):
        ledger, shares = opened()
        train(ledger, FIRST, shares, range(2))
        ledger.open(generation, Shares(done, 20, (2, 3)))
        assert Breach.BROKEN_LINEAGE in breaches(ledger)


def test_rounds_out_of_turn_are_named() -> None:
    for r in (1, -1, 9):
        ledger, _ = opened()
        ledger.commit(FIRST, r)
        assert breaches(ledger) == {Breach.BROKEN_LINEAGE}
    ledger = Ledger()
    ledger.commit(FIRST, 0)
    ledger.claim(FIRST, 0, 0, 0)
    assert breaches(ledger) == {Breach.BROKEN_LINEAGE}
