"""Updates beside a round, for any speeds: in bounds, as many as are needed, and never at a loss unasked."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from ravnest_p2p.core.planning.overlap import ALWAYS, AUTO, LINK_SHARE, MARGIN, NEVER, OVERLAPS, WORTH, Rounds

SLACK = 1e-9

clusters = st.lists(st.tuples(st.integers(1, 10**6), st.floats(1e-9, 1e6)), min_size=1, max_size=6)


@st.composite
def any_rounds(draw: st.DrawFn) -> Rounds:
    kappas, updates_s = zip(*draw(clusters), strict=True)
    stopped_s = draw(st.floats(0.0, 1e12))
    return Rounds(kappas, updates_s, stopped_s, stopped_s * draw(st.floats(1.0, 3.0)))


@given(any_rounds(), st.sampled_from(OVERLAPS))
def test_overlaps_are_within_kappa_and_as_the_job_says(rounds: Rounds, mode: str) -> None:
    found = rounds.overlaps(mode)
    assert len(found) == len(rounds.kappas)
    assert all(type(count) is int for count in found)
    assert all(0 <= count <= kappa for count, kappa in zip(found, rounds.kappas, strict=True))
    assert all(found) or not any(found)
    if mode == NEVER or len(found) == 1:
        assert not any(found)
    elif mode == ALWAYS:
        assert all(found)
    else:
        assert found in (rounds.overlaps(NEVER), rounds.overlaps(ALWAYS))


@given(any_rounds())
def test_as_many_as_a_round_takes_with_the_margin_and_no_more(rounds: Rounds) -> None:
    if len(rounds.kappas) < 2:
        return
    wanted_s = MARGIN * rounds.beside_s
    for count, kappa, update_s in zip(rounds.overlaps(ALWAYS), rounds.kappas, rounds.updates_s, strict=True):
        assert count == kappa or count * update_s >= wanted_s * (1.0 - SLACK)
        assert count == 1 or (count - 1) * update_s <= wanted_s * (1.0 + SLACK)


@given(any_rounds())
@example(Rounds((10, 5), (1.0, 2.0), 0.2, 0.4))
def test_auto_trains_on_where_that_saves_enough(rounds: Rounds) -> None:
    if len(rounds.kappas) < 2:
        return
    stopping_s = rounds.period_s(rounds.overlaps(NEVER))
    saved_s = stopping_s - rounds.period_s(rounds.overlaps(ALWAYS))
    worth_s = WORTH * rounds.busy_s
    if any(rounds.overlaps(AUTO)):
        assert saved_s >= worth_s
    else:
        assert saved_s < worth_s
    if rounds.stopped_s < worth_s - SLACK * stopping_s:
        assert not any(rounds.overlaps(AUTO)), "a round that takes so little is not worth an old mean"
    assert rounds.period_s(rounds.overlaps(AUTO)) <= stopping_s


@given(any_rounds(), st.data())
def test_a_period_is_what_clusters_that_wait_for_each_other_take(rounds: Rounds, data: st.DataObject) -> None:
    overlaps = [data.draw(st.integers(0, kappa)) for kappa in rounds.kappas]
    period_s, turns = rounds.period_s(overlaps), 40
    share = LINK_SHARE if any(overlaps) else 1.0
    round_s = rounds.beside_s if any(overlaps) else rounds.stopped_s
    busy_s = [kappa * update_s for kappa, update_s in zip(rounds.kappas, rounds.updates_s, strict=True)]
    hidden_s = [count * update_s for count, update_s in zip(overlaps, rounds.updates_s, strict=True)]
    reached_s = list(busy_s)
    for _ in range(turns):
        begun_s = max(reached_s)
        reached_s = [
            max(at_s + beside_s, begun_s + min(round_s, beside_s + share * (round_s - beside_s)))
            + whole_s
            - beside_s
            for at_s, beside_s, whole_s in zip(reached_s, hidden_s, busy_s, strict=True)
        ]
    least_s, most_s = (turns * period_s + edge(busy_s) for edge in (min, max))
    assert least_s * (1.0 - SLACK) <= max(reached_s) <= most_s * (1.0 + SLACK)
