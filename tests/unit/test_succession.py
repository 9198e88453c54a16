"""Nobody is given more time to lead than it can use."""

from __future__ import annotations

from math import nextafter

import pytest

from ravnest_p2p.core.ballot import ElectionConfig, Explain, MakePlan
from ravnest_p2p.core.types import Fence
from tests.unit.election_cases import EPOCH, OPEN_S, RULES, START_S, decisions, peer, plan

TICKETS = "abcdefgh"


def knowing_liars(name, liars, tickets=TICKETS, rules=RULES):
    """A peer that has seen two plans of one fence by each liar, in the epoch before."""
    election = peer(name, tickets, rules=rules)
    for liar in liars:
        for plan_hash in ("one", "other"):
            election.plan_heard(Fence(EPOCH - 1, 0), liar, plan_hash)
    election.poll(START_S)
    return election


def begins_s(term):
    """When a term may begin by the fastest clock."""
    return OPEN_S + term * RULES.min_term_s - RULES.clock_tolerance_s


def test_liars_in_a_row_cost_no_time():
    election = knowing_liars("c", "ab")
    why = f"a published two plans for {EPOCH - 1}.0"
    assert election.poll(OPEN_S) == [Explain(f"term {EPOCH}.0 is over: {why}; c is next")]
    assert begins_s(2) < OPEN_S + RULES.min_term_s
    assert decisions(election.poll(begins_s(2))) == [MakePlan(Fence(EPOCH, 2), "no plan before")]


def test_a_term_reached_by_passing_over_does_not_begin_before_it_may():
    election = knowing_liars("g", "abcdef")
    assert decisions(election.poll(OPEN_S)) == []
    assert (election.term, election.leader) == (6, "g")
    assert election.wake_s == begins_s(6), "and not before"
    assert decisions(election.poll(nextafter(begins_s(6), 0))) == []
    assert decisions(election.poll(begins_s(6))) == [MakePlan(Fence(EPOCH, 6), "no plan before")]


def test_its_leader_is_silent_only_after_a_term_of_its_own():
    election = knowing_liars("h", "abcdef")
    silent_s = begins_s(6) + RULES.term_s
    for at_s in (OPEN_S, OPEN_S + RULES.term_s, nextafter(silent_s, 0)):
        election.poll(at_s)
        assert election.leader == "g"
    assert decisions(election.poll(silent_s)) == [MakePlan(Fence(EPOCH, 7), "no plan before")]


def test_who_is_found_a_liar_in_its_term_loses_it_at_once():
    election = peer("b")
    election.poll(OPEN_S)
    for plan_hash in ("one", "other"):
        election.plan_heard(Fence(EPOCH - 1, 0), "a", plan_hash)
    assert decisions(election.poll(OPEN_S)) == [MakePlan(Fence(EPOCH, 1), "no plan before")]


def test_who_is_found_to_have_led_loses_the_term_at_once():
    election = peer("d", TICKETS)
    election.poll(OPEN_S)
    election.plan_seen(plan(0, "c", verdict="nonsense"), OPEN_S + 1)
    election.poll(OPEN_S + RULES.term_s)
    assert (election.term, election.leader) == (1, "b")
    election.plan_heard(Fence(EPOCH, 0), "b", "late")
    (made,) = decisions(election.poll(OPEN_S + RULES.term_s))
    assert made == MakePlan(Fence(EPOCH, 3), "no plan before"), "b and c have led"


@pytest.mark.parametrize("seconds", [1.5, 2, 7.5])
def test_where_nobody_may_be_obeyed_terms_last_as_long_as_any(seconds):
    election = knowing_liars("d", "abc", tickets="abc")
    for half in range(int(2 * seconds) + 1):
        election.poll(OPEN_S + half / 2)
    assert election.term == seconds // RULES.min_term_s


def test_passing_over_does_not_lead_out_of_the_epoch():
    rules = ElectionConfig("test", epoch_s=60, term_s=10, min_term_s=2, grace_s=4, max_terms=3)
    election = knowing_liars("h", "abcdefg", rules=rules)
    for second in range(50):
        assert decisions(election.poll(OPEN_S + second)) == []
    assert election.term == 2
