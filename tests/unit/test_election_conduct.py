"""What follows for a leader's next plans from those that it published."""

from __future__ import annotations

from itertools import permutations

import pytest

from ravnest_p2p.core.ballot import Explain, Expose, MakePlan, Phase, Refuse
from ravnest_p2p.core.conduct import Conduct
from ravnest_p2p.core.equivocation import Equivocators
from ravnest_p2p.core.types import Fence
from tests.unit.election_cases import EPOCH, OPEN_S, START_S, adopts, decisions, peer, plan


def test_who_published_two_plans_for_one_fence_is_never_obeyed_again():
    election = peer("d")
    election.plan_seen(plan(0, "a"), OPEN_S)
    actions = election.plan_seen(plan(0, "a", tag=" changed"), OPEN_S)
    assert Explain("a published two plans for 100.0: it is not obeyed again") in actions
    for at_s, later in (
        (OPEN_S + 9, plan(4, "a", tag=" later")),
        (OPEN_S + 60, plan(0, "a", EPOCH + 1, tag=" next")),
    ):
        election.ticket_seen(later.fence.epoch, "a", 0)
        election.poll(at_s)
        assert not election.deserves_a_look(later, at_s)
        refused = decisions(election.plan_seen(later, at_s))[-1]
        assert refused.why == "a published two plans for 100.0"


def test_its_two_plans_are_handed_on_once_an_epoch_while_it_goes_on():
    election = peer("d")
    proof = Expose(Fence(EPOCH, 0), "a", ("hash of a", "hash of a changed"))
    election.plan_seen(plan(0, "a"), OPEN_S)
    assert election.plan_heard(Fence(EPOCH, 0), "a", "hash of a changed")[0] == proof
    for epoch in (EPOCH, EPOCH + 1):
        at_s = epoch * 60 + 14
        election.ticket_seen(epoch, "a", 0)
        election.poll(at_s)
        told = [election.plan_seen(plan(0, "a", epoch, tag=f" {n}"), at_s) for n in range(3)]
        assert [proof in actions for actions in told] == [epoch > EPOCH, False, False]


def test_who_obeys_a_liar_is_met_above_it():
    election = peer("b", tickets="abcdefgh")
    election.plan_seen(plan(0, "c"), OPEN_S)
    election.plan_heard(Fence(EPOCH - 1, 0), "d", "one")
    election.plan_heard(Fence(EPOCH - 1, 0), "d", "other")
    election.plan_seen(plan(2, "d"), OPEN_S + 5)
    assert decisions(election.poll(OPEN_S + 14)) == []
    election.poll(OPEN_S + 15)
    assert (election.term, election.leader) == (4, "e"), "above it, and past the liar's own turn"


def test_a_leader_leaves_the_next_terms_to_the_others():
    election = peer("c", tickets="abcdefgh")
    election.plan_seen(plan(0, "a"), OPEN_S)
    refused = decisions(election.plan_seen(plan(1, "a", tag=" again"), OPEN_S + 2))[-1]
    assert refused == Refuse(Fence(EPOCH, 1), "a", "it has led term 0, and it is the others' turn")
    assert decisions(election.plan_seen(plan(1, "b"), OPEN_S + 3)) == adopts(plan(1, "b"))
    assert decisions(election.plan_seen(plan(6, "a", tag=" later"), OPEN_S + 20)) == adopts(
        plan(6, "a", tag=" later")
    )


def test_whose_turn_is_over_is_not_waited_for():
    election = peer("c", tickets="abcdefgh")
    election.plan_seen(plan(0, "b"), OPEN_S)
    election.replan_wanted("broken")
    election.poll(OPEN_S + 2)
    assert (election.term, election.leader) == (2, "c"), "term 1 is that of b by our tickets"


@pytest.mark.parametrize("order", permutations((0, 1, 6, 7)))
def test_whose_turn_is_over_does_not_depend_on_the_order_in_which_its_plans_are_heard(order):
    conduct = Conduct()
    for term in order:
        conduct.note_term("a", term)
    turns_left_to_others = [term for term in range(14) if conduct.has_led("a", term, 6) is not None]
    assert turns_left_to_others == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11]


def test_a_plan_of_a_term_that_no_epoch_has_takes_nobodys_turn():
    election = peer("c", tickets="abcdefgh")
    election.plan_heard(Fence(EPOCH, -1), "a", "hash")
    assert election.deserves_a_look(plan(0, "a"), OPEN_S)


def test_of_few_peers_the_same_may_lead_again():
    election = peer("a", tickets="ab")
    election.plan_seen(plan(0, "b"), OPEN_S)
    assert decisions(election.plan_seen(plan(1, "b", tag=" again"), OPEN_S + 2)) == adopts(
        plan(1, "b", tag=" again")
    )


def test_who_knows_few_tickets_gives_the_first_term_more_time():
    election = peer("b", tickets="b")
    election.expect_peers(3)
    assert decisions(election.poll(OPEN_S)) == []
    assert decisions(election.poll(OPEN_S + 2)) == [MakePlan(Fence(EPOCH, 0), "first plan of the epoch")]


def test_its_terms_end_as_soon_as_a_term_may():
    election = peer("d")
    election.plan_seen(plan(1, "b"), OPEN_S)
    election.plan_seen(plan(1, "b", tag=" changed"), OPEN_S)
    next_s = START_S + 60
    for value, name in enumerate("bcd"):
        election.ticket_seen(EPOCH + 1, name, value)
    election.poll(next_s)
    election.poll(next_s + 4)
    election.poll(next_s + 6)
    assert election.leader == "c"


def test_what_proves_it_may_be_below_what_is_obeyed():
    election = peer("d")
    election.plan_seen(plan(2, "c"), OPEN_S + 9)
    election.plan_seen(plan(0, "a"), OPEN_S + 9)
    election.plan_seen(plan(0, "a", tag=" changed"), OPEN_S + 9)
    assert not election.deserves_a_look(plan(4, "a", tag=" later"), OPEN_S + 9)
    assert election.phase is Phase.LED, "the plan obeyed is another's"


def test_the_same_plan_again_proves_nothing():
    election = peer("d")
    for _ in range(3):
        election.plan_seen(plan(0, "a"), OPEN_S)
    assert election.deserves_a_look(plan(4, "a", tag=" later"), OPEN_S + 9)


def test_memory_of_what_authors_said_is_bounded(monkeypatch):
    monkeypatch.setattr("ravnest_p2p.core.equivocation.MAX_SAID", 2)
    monkeypatch.setattr("ravnest_p2p.core.equivocation.MAX_PROVEN", 2)
    heard = Equivocators()
    for term in range(4):
        assert not heard.hear(Fence(1, term), "a", "h")
    assert not heard.hear(Fence(1, 0), "a", "other"), "forgotten"
    for name in "bcd":
        assert not heard.hear(Fence(2, 0), name, "h")
        assert heard.hear(Fence(2, 0), name, "other")
    assert [heard.proof(name) is not None for name in "bcd"] == [False, True, True]
