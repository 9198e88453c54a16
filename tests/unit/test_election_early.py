"""A plan a little ahead of its term waits for it; one further ahead is refused for good."""

from __future__ import annotations

from math import nextafter

import pytest

from ravnest_p2p.core.ballot import ElectionConfig, MakePlan, PlanHeader, Reconsider, Refuse
from ravnest_p2p.core.pending import MAX_HELD
from ravnest_p2p.core.types import Fence
from tests.unit.election_cases import (
    EPOCH,
    OPEN_S,
    RULES,
    START_S,
    adopts,
    decisions,
    peer,
    plan,
    reconsiders,
)

EARLY = plan(5, "b")
BEGINS_S = OPEN_S + 5 * RULES.min_term_s - RULES.clock_tolerance_s
FIRST_S = BEGINS_S - RULES.clock_tolerance_s
"""When the fastest clock of an honest author may say that it has begun."""


def listening(name="d", tickets="abcd", now_s=FIRST_S):
    """A peer that has nothing to do but wait for a term to end."""
    election = peer(name, tickets, now_s=now_s)
    election.poll(now_s)
    return election


def asked_again(actions):
    return [action for action in actions if isinstance(action, Reconsider)]


@pytest.mark.parametrize("at_s", [FIRST_S, BEGINS_S - 0.5, nextafter(BEGINS_S, 0)])
def test_a_plan_a_moment_early_is_obeyed_when_its_term_can_begin(at_s):
    election = listening(now_s=START_S)
    election.poll(OPEN_S)
    election.poll(at_s)
    assert decisions(election.plan_seen(EARLY, at_s)) == []
    assert election.wake_s == BEGINS_S, "and not before"
    assert decisions(election.poll(nextafter(BEGINS_S, 0))) == []
    assert decisions(election.poll(BEGINS_S)) == [reconsiders(EARLY)]
    assert decisions(election.plan_seen(EARLY, BEGINS_S)) == adopts(EARLY)


def test_other_news_does_not_make_it_forget_when_to_wake():
    election = listening()
    election.plan_seen(EARLY, FIRST_S)
    election.ticket_seen(EPOCH, "e", 9)
    election.poll(FIRST_S + 1)
    assert election.wake_s == BEGINS_S


def test_a_plan_further_ahead_than_clocks_differ_is_refused_for_good():
    election, at_s = listening(now_s=START_S), nextafter(FIRST_S, 0)
    election.poll(OPEN_S)
    election.poll(at_s)
    wake_s = election.wake_s
    refused = [Refuse(EARLY.fence, "b", "its term is further ahead than clocks differ")]
    assert decisions(election.plan_seen(EARLY, at_s)) == refused
    assert decisions(election.plan_seen(EARLY, at_s)) == [], "said once"
    assert election.wake_s == wake_s
    assert not asked_again(election.poll(BEGINS_S))


@pytest.mark.parametrize("term", [-1, RULES.max_terms])
def test_a_term_that_no_epoch_has_is_refused_for_good(term):
    election = listening(now_s=START_S + 59)
    refused = decisions(election.plan_seen(plan(term), START_S + 59))
    assert refused == [Refuse(Fence(EPOCH, term), "a", "no epoch has such a term")]


def test_a_plan_of_a_later_term_of_the_coming_epoch_is_no_less_far_ahead():
    """It was kept until that epoch was over, where its term came too late."""
    election = listening()
    coming = plan(5, "b", EPOCH + 1)
    refused = decisions(election.plan_seen(coming, START_S + 59))
    assert refused == [Refuse(coming.fence, "b", "its epoch is further ahead than clocks differ")]


def test_nobody_is_woken_for_the_early_plan_of_an_author_without_title():
    election = listening()
    wake_s = election.wake_s
    stranger = plan(5, "x")
    refused = decisions(election.plan_seen(stranger, FIRST_S))
    assert refused == [Refuse(stranger.fence, "x", "its author has shown no ticket of this epoch")]
    assert election.wake_s == wake_s
    election.ticket_seen(EPOCH, "x", 9)
    assert not asked_again(election.poll(FIRST_S))
    assert election.wake_s == BEGINS_S
    assert asked_again(election.poll(BEGINS_S)) == [reconsiders(stranger)]


def test_strangers_do_not_fill_the_places():
    election = listening()
    for number in range(2 * MAX_HELD):
        election.plan_seen(plan(5, f"stranger {number}"), FIRST_S)
    election.plan_seen(EARLY, FIRST_S)
    for number in range(2 * MAX_HELD):
        election.plan_seen(plan(5, f"late stranger {number}"), FIRST_S)
    assert asked_again(election.poll(BEGINS_S)) == [reconsiders(EARLY)]


def test_a_liar_does_not_fill_the_places():
    """Two plans of one fence prove it, whatever the time."""
    election = listening()
    for number in range(2 * MAX_HELD):
        election.plan_seen(plan(5, "c", tag=f" {number}"), FIRST_S)
    election.plan_seen(EARLY, FIRST_S)
    assert reconsiders(EARLY) in election.poll(BEGINS_S)


def test_places_are_bounded():
    names = [f"{number:03}" for number in range(4 * MAX_HELD)]
    election = listening("d", ["d", *names])
    entitled = names[: 3 * MAX_HELD // 2]
    for name in entitled:
        election.plan_seen(plan(5, name), FIRST_S)
    first = [reconsiders(plan(5, name)) for name in entitled[:MAX_HELD]]
    assert asked_again(election.poll(BEGINS_S)) == first


def test_places_of_the_coming_epoch_are_for_those_with_its_tickets():
    election, at_s = listening(), START_S + 59
    election.ticket_seen(EPOCH + 1, "a", 0)
    for number in range(2 * MAX_HELD):
        election.plan_seen(plan(0, f"stranger {number}", EPOCH + 1), at_s)
    coming = plan(0, "a", EPOCH + 1)
    election.plan_seen(coming, at_s)
    assert asked_again(election.poll(START_S + 60)) == [reconsiders(coming)]


def test_what_has_waited_is_judged_before_a_plan_is_made():
    election, early = peer("a"), plan(1, "b")
    election.plan_seen(early, START_S + 1)
    assert decisions(election.poll(OPEN_S)) == [reconsiders(early)]
    assert decisions(election.plan_seen(early, OPEN_S)) == adopts(early)
    assert decisions(election.poll(OPEN_S)) == []


def test_who_is_to_lead_above_a_rift_waits_until_its_term_can_begin():
    """It would not obey its own plan before, so that nobody came to see it, and the term was lost."""
    rules = ElectionConfig("test", epoch_s=60, term_s=3, min_term_s=2, grace_s=4)
    election = peer("b", rules=rules)
    election.plan_seen(plan(), OPEN_S)
    doubted = PlanHeader(Fence(EPOCH, 1), "c", "hash of c", doubt="it moves a healthy cluster")
    election.plan_seen(doubted, OPEN_S)
    further = PlanHeader(Fence(EPOCH, 4), "d", "hash of d", doubt="it moves a healthy cluster")
    seen_s = OPEN_S + 5
    election.plan_seen(further, seen_s)
    assert decisions(election.poll(seen_s)) == []
    assert election.term == 5
    assert election.wake_s == BEGINS_S
    assert [type(action) for action in decisions(election.poll(BEGINS_S))] == [MakePlan]
    assert decisions(election.plan_seen(EARLY, BEGINS_S)) == adopts(EARLY)
