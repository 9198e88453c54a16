"""Election: what one peer decides, step by step, without any other peer."""

import pytest

from ravnest_p2p.core.ballot import (
    Adopt,
    Adopted,
    DrawTicket,
    ElectionConfig,
    MakePlan,
    Phase,
    PlanHeader,
    PublishTicket,
    Refuse,
)
from ravnest_p2p.core.election import Election
from ravnest_p2p.core.errors import ConfigError
from ravnest_p2p.core.tickets import TICKET_SPACE
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


def test_ticket_is_drawn_and_published_once():
    election = Election("b", RULES, START_S)
    assert decisions(election.poll(START_S)) == [DrawTicket(EPOCH, "")]
    election.own_ticket(EPOCH, 1)
    assert decisions(election.poll(START_S)) == [PublishTicket(EPOCH)]
    assert decisions(election.poll(START_S + 1)) == []


def test_ineligible_peer_draws_nothing_and_never_plans():
    election = Election("b", RULES, START_S, eligible=False)
    assert decisions(election.poll(START_S)) == []
    assert all(not decisions(election.poll(START_S + second)) for second in range(60))
    election.set_eligible(True)
    assert [type(action) for action in decisions(election.poll(START_S + 59))] == [DrawTicket]


def test_next_ticket_names_the_plan_obeyed():
    election = peer()
    election.plan_seen(plan(), OPEN_S)
    assert decisions(election.poll(START_S + 60)) == [DrawTicket(EPOCH + 1, "hash of a")]


def test_a_high_ticket_waits_until_nobody_leads():
    election = Election("b", RULES, START_S)
    election.expect_peers(6400)
    election.poll(START_S)
    election.own_ticket(EPOCH, TICKET_SPACE // 60)
    assert decisions(election.poll(START_S)) == []
    election.poll(OPEN_S)
    published = decisions(election.poll(OPEN_S + 10))
    assert published == [PublishTicket(EPOCH), MakePlan(Fence(EPOCH, 1), "no plan before")]


def test_lowest_ticket_plans_after_the_grace():
    election = peer("a")
    assert decisions(election.poll(OPEN_S - 0.1)) == []
    assert decisions(election.poll(OPEN_S)) == [MakePlan(Fence(EPOCH, 0), "first plan of the epoch")]
    assert decisions(election.poll(OPEN_S + 1)) == []
    assert decisions(election.plan_seen(plan(), OPEN_S + 1)) == adopts(plan())
    assert election.leader == "a"


def test_one_peer_alone_leads_itself():
    election = peer("a", tickets="a")
    assert decisions(election.poll(OPEN_S)) == [MakePlan(Fence(EPOCH, 0), "first plan of the epoch")]


def test_silent_leader_is_followed_by_the_next():
    election = peer("b")
    election.poll(OPEN_S)
    assert election.leader == "a"
    assert decisions(election.poll(OPEN_S + 9.9)) == []
    assert decisions(election.poll(OPEN_S + 10)) == [MakePlan(Fence(EPOCH, 1), "no plan before")]


def test_refused_plan_ends_the_term_but_not_before_its_time():
    election = peer("b")
    election.poll(OPEN_S)
    refused = decisions(election.plan_seen(plan(verdict="moves a healthy cluster"), OPEN_S + 1))
    assert refused == [Refuse(Fence(EPOCH, 0), "a", "moves a healthy cluster")]
    assert decisions(election.poll(OPEN_S + 1)) == []
    assert decisions(election.poll(OPEN_S + 2)) == [MakePlan(Fence(EPOCH, 1), "no plan before")]


def test_a_leader_whose_plan_was_refused_is_not_waited_for_again():
    election = peer("c")
    election.poll(OPEN_S)
    election.plan_seen(plan(term=1, leader="b", verdict="nonsense"), OPEN_S + 5)
    assert election.term == 0
    election.poll(OPEN_S + 10)
    assert (election.term, election.leader) == (1, "b")
    assert decisions(election.poll(OPEN_S + 11.9)) == []
    assert decisions(election.poll(OPEN_S + 12)) == [MakePlan(Fence(EPOCH, 2), "no plan before")]
    assert decisions(election.plan_seen(plan(term=1, leader="b"), OPEN_S + 12.5)) == adopts(
        plan(term=1, leader="b")
    )


def test_a_new_epoch_forgets_whose_plan_was_refused():
    election = peer("b")
    election.poll(OPEN_S)
    election.plan_seen(plan(verdict="nonsense"), OPEN_S)
    election.poll(START_S + 60)
    election.ticket_seen(EPOCH + 1, "a", 0)
    election.poll(OPEN_S + 60)
    assert election.leader == "a"
    assert decisions(election.poll(OPEN_S + 69.9)) == []
    assert election.leader == "a"


def test_bad_plan_by_somebody_else_does_not_end_the_term():
    election = peer("b", tickets="abcdefghijklmnopqrst")
    election.poll(OPEN_S)
    election.plan_seen(plan(leader="t", verdict="nonsense"), OPEN_S)
    election.plan_seen(plan(leader="c", verdict="nonsense"), OPEN_S)
    assert decisions(election.poll(OPEN_S + 3)) == []
    assert election.term == 0


def test_gone_leader_is_not_waited_for():
    election = peer("b")
    election.peer_gone("a")
    election.poll(OPEN_S)
    assert decisions(election.poll(OPEN_S + 2)) == [MakePlan(Fence(EPOCH, 1), "no plan before")]


def test_stale_plan_ends_the_term():
    election = peer("b")
    election.poll(OPEN_S)
    election.plan_seen(plan(), OPEN_S + 1)
    election.replan_wanted("generation 100.0 broke")
    assert decisions(election.poll(OPEN_S + 2)) == []
    assert decisions(election.poll(OPEN_S + 3)) == [MakePlan(Fence(EPOCH, 1), "generation 100.0 broke")]
    assert decisions(election.plan_seen(plan(1, "b"), OPEN_S + 4)) == adopts(plan(1, "b"))
    assert decisions(election.poll(OPEN_S + 50)) == []


def test_withdrawn_reason_changes_nothing():
    election = peer("b")
    election.plan_seen(plan(), OPEN_S)
    election.replan_wanted("a job waits")
    election.replan_wanted("")
    assert decisions(election.poll(OPEN_S + 30)) == []


def test_only_a_higher_fence_is_adopted():
    election = peer("d")
    assert decisions(election.plan_seen(plan(2, "c"), OPEN_S + 9)) == adopts(plan(2, "c"))
    for header in (plan(0, "a"), plan(1, "b"), plan(2, "d")):
        assert [type(action) for action in decisions(election.plan_seen(header, OPEN_S + 9))] == [Refuse]
    assert election.adopted == Adopted(Fence(EPOCH, 2), "c", "hash of c")
    assert decisions(election.plan_seen(plan(2, "c"), OPEN_S + 9)) == []


@pytest.mark.parametrize("second", [plan(0, "c"), plan(0, "a", tag=" changed")])
def test_two_plans_of_one_fence_end_the_term(second):
    election = peer("b")
    election.plan_seen(plan(), OPEN_S)
    assert type(decisions(election.plan_seen(second, OPEN_S))[-1]) is Refuse
    assert [type(action) for action in decisions(election.poll(OPEN_S + 2))] == [MakePlan]


def test_stranger_is_refused_until_its_ticket_is_seen():
    election = peer("b", tickets="bcd")
    refused = decisions(election.plan_seen(plan(), OPEN_S))
    assert refused == [Refuse(Fence(EPOCH, 0), "a", "its author has shown no ticket of this epoch")]
    assert decisions(election.plan_seen(plan(), OPEN_S)) == []
    election.ticket_seen(EPOCH, "a", 0)
    assert decisions(election.poll(OPEN_S)) == [reconsiders(plan())]
    assert decisions(election.plan_seen(plan(), OPEN_S)) == adopts(plan())


def test_far_rank_may_not_lead():
    election = peer("b", tickets="abcdefghijklmnopqrst")
    assert [type(action) for action in decisions(election.plan_seen(plan(0, "t"), OPEN_S))] == [Refuse]


def test_no_plan_may_jump_to_the_end_of_the_epoch():
    election = peer("b")
    assert [type(a) for a in decisions(election.plan_seen(plan(20, "a"), OPEN_S))] == [Refuse]
    assert decisions(election.plan_seen(plan(20, "a"), OPEN_S + 40)) == adopts(plan(20, "a"))


@pytest.mark.parametrize("term", [-1, 64, 10**9])
def test_senseless_terms_are_refused(term):
    assert [type(a) for a in decisions(peer().plan_seen(plan(term), START_S + 59))] == [Refuse]


def test_plan_of_the_past_is_refused():
    assert [type(a) for a in decisions(peer().plan_seen(plan(epoch=EPOCH - 1), OPEN_S))] == [Refuse]


def test_plan_of_the_coming_epoch_waits_for_it_within_the_clock_tolerance():
    election = peer()
    coming = plan(epoch=EPOCH + 1)
    assert [type(a) for a in decisions(election.plan_seen(coming, START_S + 56.9))] == [Refuse]
    assert decisions(election.plan_seen(coming, START_S + 57.1)) == []
    election.ticket_seen(EPOCH + 1, "a", 0)
    assert reconsiders(coming) in election.poll(START_S + 60)
    assert decisions(election.plan_seen(coming, START_S + 60)) == adopts(coming)


def test_tickets_of_other_epochs_do_not_count():
    election = Election("b", RULES, START_S)
    for epoch in (EPOCH - 1, EPOCH + 1, EPOCH + 2):
        election.ticket_seen(epoch, "a", 0)
    assert election.leader is None


def test_restart_keeps_the_fence_and_takes_the_same_plan_up_once():
    before = peer("d")
    before.plan_seen(plan(2, "c"), OPEN_S + 9)
    election = peer("d", now_s=OPEN_S + 10, adopted=before.adopted)
    for header in (plan(0, "a"), plan(1, "b"), plan(2, "d")):
        assert [type(action) for action in decisions(election.plan_seen(header, OPEN_S + 10))] == [Refuse]
    assert decisions(election.plan_seen(plan(2, "c"), OPEN_S + 10)) == adopts(plan(2, "c"))
    assert decisions(election.plan_seen(plan(2, "c"), OPEN_S + 10)) == []
    assert (election.phase, election.term) == (Phase.LED, 2)


def test_who_starts_in_the_middle_listens_first():
    election = peer("a", now_s=START_S + 30)
    assert decisions(election.poll(START_S + 33.9)) == []
    assert [type(action) for action in decisions(election.poll(START_S + 34))] == [MakePlan]


def test_failed_planning_hands_over():
    election = peer("a", tickets="ab")
    election.poll(OPEN_S)
    election.plan_failed(Fence(EPOCH, 0), "no memory")
    election.poll(OPEN_S + 2)
    assert (election.term, election.leader) == (1, "b")


def test_last_term_is_the_last():
    rules = ElectionConfig("test", epoch_s=60, term_s=2, min_term_s=2, grace_s=4, max_terms=3)
    election = peer("d", rules=rules)
    for second in range(56):
        election.poll(OPEN_S + second)
    assert election.term == 2


def test_wake_is_honest():
    """Polling at every wake time decides the same as polling all the time."""
    transcripts = []
    for lazy in (True, False):
        election, seen = peer("c"), []
        for tick in range(3000):
            now_s = START_S + tick / 16
            if lazy and now_s < election.wake_s:
                continue
            for action in election.poll(now_s):
                seen.append((now_s, action))
                if isinstance(action, DrawTicket):
                    election.own_ticket(action.epoch, 1)
        transcripts.append(seen)
    assert transcripts[0] == transcripts[1]
    assert any(isinstance(action, MakePlan) for _, action in transcripts[0])


def test_future_fence_from_a_wrong_clock_is_explained():
    election = Election("b", RULES, START_S, adopted=Adopted(Fence(10**6, 0), "a", "h"))
    assert "clock" in election.poll(START_S + 60)[0].text


@pytest.mark.parametrize("settings", [{"term_s": 1, "min_term_s": 2}, {"grace_s": 300}, {"max_terms": 0}])
def test_senseless_rules_are_refused(settings):
    with pytest.raises(ConfigError):
        ElectionConfig("test", **settings)


def doubted(term=0, leader="a") -> PlanHeader:
    return PlanHeader(Fence(EPOCH, term), leader, f"hash of {leader}", doubt="it moves a healthy cluster")


def test_a_doubted_plan_ends_the_term_and_is_never_taken_while_the_doubt_stands():
    election = peer("d")
    election.poll(OPEN_S)
    refused = decisions(election.plan_seen(doubted(), OPEN_S + 1))
    assert refused == [Refuse(Fence(EPOCH, 0), "a", "it moves a healthy cluster")]
    election.poll(OPEN_S + 2)
    assert (election.term, election.leader) == (1, "b")
    for second in range(3, 55):
        assert not any(isinstance(a, Adopt) for a in election.poll(OPEN_S + second))
        assert decisions(election.plan_seen(doubted(), OPEN_S + second)) == []
    assert election.adopted is None


def test_a_better_plan_overtakes_a_doubted_one():
    election = peer("d")
    election.plan_seen(doubted(), OPEN_S)
    assert decisions(election.plan_seen(plan(1, "b"), OPEN_S + 5)) == adopts(plan(1, "b"))
    assert decisions(election.poll(OPEN_S + 30)) == []


def test_doubt_that_is_withdrawn_is_over_at_once():
    election = peer("d")
    election.plan_seen(doubted(), OPEN_S)
    assert decisions(election.plan_seen(plan(), OPEN_S + 1)) == adopts(plan())


def test_a_plan_above_a_lasting_rift_is_asked_for_once():
    """Whoever does obey the doubted plan can only be brought back by a fence above it."""
    election = peer("b")
    election.plan_seen(plan(), OPEN_S)
    later_s = OPEN_S + 30
    election.plan_seen(doubted(4), later_s)
    election.plan_seen(doubted(2), later_s + 1)
    assert election.wake_s <= later_s + RULES.term_s
    assert decisions(election.poll(later_s + 9.9)) == []
    assert decisions(election.poll(later_s + 10)) == [
        MakePlan(Fence(EPOCH, 5), f"{EPOCH}.4, which is not obeyed here, may be obeyed elsewhere")
    ]
    assert decisions(election.plan_seen(plan(5, "b"), later_s + 11)) == adopts(plan(5, "b"))
    election.plan_seen(doubted(4), later_s + 12)
    assert decisions(election.poll(later_s + 25)) == []


def test_a_doubted_second_plan_of_the_obeyed_fence_does_not_end_the_term_at_once():
    election = peer("b")
    election.plan_seen(plan(), OPEN_S)
    election.plan_seen(
        PlanHeader(Fence(EPOCH, 0), "a", "another", doubt="it moves a healthy cluster"), OPEN_S
    )
    assert decisions(election.poll(OPEN_S + 9)) == []
    assert [type(action) for action in decisions(election.poll(OPEN_S + 10))] == [MakePlan]


def test_only_plans_that_could_be_obeyed_deserve_a_look():
    election = peer("b", tickets="abc")
    assert election.deserves_a_look(plan(), OPEN_S)
    assert not election.deserves_a_look(plan(20), OPEN_S), "its term cannot have begun"
    assert not election.deserves_a_look(plan(0, "x"), OPEN_S), "no ticket"
    assert not election.deserves_a_look(plan(epoch=EPOCH - 1), OPEN_S)
    election.plan_seen(plan(), OPEN_S)
    assert not election.deserves_a_look(plan(), OPEN_S), "it is obeyed"
    assert election.deserves_a_look(plan(0, "b"), OPEN_S), "another hand's plan of the same fence"
