"""Any data set is permuted, any partition of work covers each batch once, through any crashes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ravnest_p2p.core.ledger import Breach, DataOrder, Ledger, Shares
from ravnest_p2p.core.types import Generation

kappas = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


@given(st.integers(1, 700), st.integers(0, 1 << 40), st.integers(-(1 << 65), 1 << 65))
def test_each_pass_is_a_permutation(samples: int, pass_number: int, seed: int) -> None:
    order = DataOrder(samples, 1, 1, seed)
    seen = [order.sample_at(pass_number * samples + i) for i in range(samples)]
    assert sorted(seen) == list(range(samples))


@given(st.integers(1, 60), st.integers(1, 7), st.integers(1, 5), st.integers(1, 3))
def test_batches_tile_the_stream(samples: int, size: int, m: int, passes: int) -> None:
    order = DataOrder(samples, size, m, seed=3)
    batches = order.batches_in(passes)
    tiled = [i for b in range(batches) for k in range(m) for i in order.microbatch(b, k)]
    assert tiled == [order.sample_at(i) for i in range(batches * size * m)]
    assert all(tiled.count(sample) >= passes for sample in range(samples))
    assert (batches - 1) * size * m < passes * samples


@given(st.integers(0, 20), st.integers(0, 60), kappas)
def test_shares_cover_each_batch_once_in_its_round(done: int, more: int, kappa: tuple[int, ...]) -> None:
    shares = Shares(done, done + more, kappa)
    given_out: dict[int, int] = {}
    for c in range(len(kappa)):
        assert shares.local_updates(c) == sum(shares.updates_in_round(c, r) for r in range(shares.rounds))
        for u in range(shares.local_updates(c)):
            batch = shares.batch(c, u)
            assert batch not in given_out
            given_out[batch] = u // kappa[c]
    assert sorted(given_out) == list(range(done, done + more))
    for batch, r in given_out.items():
        assert shares.batches_after(r - 1) <= batch < shares.batches_after(r)
    assert shares.batches_after(shares.rounds - 1) == done + more
    assert all(any(shares.weights(r)) for r in range(shares.rounds))


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[Shares, int, int]]:
    """Generations: their shares, rounds committed, and updates claimed beyond them; the last one finishes."""
    total, ends, history = draw(st.integers(1, 30)), {0}, []
    for last in (*draw(st.lists(st.just(False), max_size=4)), True):
        start = draw(st.sampled_from(sorted(ends)))
        shares = Shares(start, total, draw(kappas))
        committed = shares.rounds if last else draw(st.integers(0, shares.rounds))
        ends = {end for end in ends if end <= start} | {shares.batches_after(r) for r in range(committed)}
        history.append((shares, committed, draw(st.integers(0, 6))))
    return history


Claim = tuple[int, int, int, int]
"""Generation number, cluster, local update, batch."""


def claims_of(history: list[tuple[Shares, int, int]]) -> list[Claim]:
    return [
        (number, c, u, shares.batch(c, u))
        for number, (shares, committed, beyond) in enumerate(history)
        for c, kappa in enumerate(shares.updates_per_round)
        for u in range(min(shares.local_updates(c), committed * kappa + beyond))
    ]


def play(history: list[tuple[Shares, int, int]], claims: list[Claim]) -> Ledger:
    ledger = Ledger()
    for number, (shares, committed, _) in enumerate(history):
        generation = Generation(number, 0, "x")
        ledger.open(generation, shares)
        for claim in claims:
            if claim[0] == number:
                ledger.claim(generation, *claim[1:])
        for r in range(committed):
            ledger.commit(generation, r)
    return ledger


def survives(history: list[tuple[Shares, int, int]], claim: Claim) -> bool:
    number, cluster, update, _ = claim
    shares, committed, _ = history[number]
    r = update // shares.updates_per_round[cluster]
    return r < committed and all(
        shares.batches_after(r) <= later.batches_done for later, _, _ in history[number + 1 :]
    )


@given(histories())
def test_any_history_of_crashes_counts_each_batch_once(history: list[tuple[Shares, int, int]]) -> None:
    ledger = play(history, claims_of(history))
    assert ledger.violations() == []
    assert ledger.batches_done == history[-1][0].total_batches


@given(histories(), st.data())
def test_exactly_the_claims_that_survive_are_missed(
    history: list[tuple[Shares, int, int]], data: st.DataObject
) -> None:
    claims = claims_of(history)
    left_out = data.draw(st.sampled_from(claims))
    claims.remove(left_out)
    lost = [str(violation) for violation in play(history, claims).violations()]
    batch = left_out[-1]
    assert lost == (
        [f"lost: batch {batch} is in no update that counts"] if survives(history, left_out) else []
    )


@given(histories(), st.data())
def test_exactly_the_repeats_that_survive_count_twice(
    history: list[tuple[Shares, int, int]], data: st.DataObject
) -> None:
    claims = claims_of(history)
    number, cluster, update, batch = changed = data.draw(st.sampled_from(claims))
    other = data.draw(st.sampled_from([c for c in claims if survives(history, c)]))
    claims[claims.index(changed)] = (number, cluster, update, other[-1])
    seen = {violation.breach for violation in play(history, claims).violations()}
    harmless = batch == other[-1] or not survives(history, changed)
    assert seen == (set() if harmless else {Breach.WRONG_BATCH, Breach.APPLIED_TWICE, Breach.LOST})
