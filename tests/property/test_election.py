"""Election and membership under any order of events."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ravnest_p2p.core.ballot import Adopt, DrawTicket, ElectionConfig, MakePlan, PlanHeader, Reconsider
from ravnest_p2p.core.election import Election
from ravnest_p2p.core.membership import TRANSITIONS, Membership, PeerState
from ravnest_p2p.core.obedience import Obedience
from ravnest_p2p.core.tickets import TicketBook
from ravnest_p2p.core.types import Fence, Generation

RULES = ElectionConfig("test", epoch_s=30, term_s=6, min_term_s=2, grace_s=4, tickets_wanted=4, max_terms=8)
PEERS = st.sampled_from("abcde")
FENCES = st.tuples(st.integers(0, 6), st.integers(-1, 9))

EVENTS = st.one_of(
    st.tuples(st.just("pass"), st.floats(0, 12)),
    st.tuples(st.just("ticket"), st.integers(0, 6), PEERS, st.integers(0, 99)),
    st.tuples(
        st.just("plan"), FENCES, PEERS, st.sampled_from(["h1", "h2"]), st.sampled_from(["ok", "bad", "worse"])
    ),
    st.tuples(st.just("next plan"), PEERS, st.sampled_from(["ok", "bad", "worse"])),
    st.tuples(st.just("stale"), st.sampled_from(["", "broken"])),
    st.tuples(st.just("gone"), PEERS),
    st.tuples(st.just("restart")),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(EVENTS, max_size=60))
def test_any_order_of_events_keeps_the_fence(events):
    now_s = 30.0
    election = Election("a", RULES, now_s)
    obeyed: list[tuple[Fence, str, str]] = []
    made: set[Fence] = set()

    seen: dict[tuple[Fence, str, str], PlanHeader] = {}

    def see(header):
        seen[header.fence, header.leader, header.plan_hash] = header
        actions = election.plan_seen(header, now_s)
        assert not (header.verdict or header.doubt) or not any(isinstance(a, Adopt) for a in actions)
        do(actions)

    def do(actions):
        for action in actions:
            if isinstance(action, Reconsider):
                see(seen[action.fence, action.leader, action.plan_hash])
            elif isinstance(action, DrawTicket):
                election.own_ticket(action.epoch, 50)
            elif isinstance(action, MakePlan):
                assert action.fence not in made
                made.add(action.fence)
                assert not obeyed or action.fence > obeyed[-1][0]
                see(PlanHeader(action.fence, "a", "own"))
            elif isinstance(action, Adopt):
                entry = (action.fence, action.leader, action.plan_hash)
                if obeyed and action.fence <= obeyed[-1][0]:
                    assert restarted
                    assert entry == obeyed[-1]
                else:
                    obeyed.append(entry)
                assert action.fence.epoch == election.epoch
                assert action.fence.epoch <= (now_s + RULES.clock_tolerance_s) // RULES.epoch_s
                assert 0 <= action.fence.term < RULES.max_terms

    restarted = False
    for kind, *values in events:
        if kind == "pass":
            now_s += values[0]
        elif kind == "ticket":
            election.ticket_seen(*values)
        elif kind == "plan":
            fence, leader, plan_hash, state = values
            see(header(Fence(*fence), leader, plan_hash, state))
        elif kind == "next plan":
            fence = Fence(election.epoch, election.term + 1)
            see(header(fence, values[0], "next", values[1]))
        elif kind == "stale":
            election.replan_wanted(values[0])
        elif kind == "gone":
            election.peer_gone(values[0])
        else:
            restarted = True
            made = {fence for fence, _, _ in obeyed}  # what it refused itself, nobody has seen
            election = Election("a", RULES, now_s, election.adopted)
        for _ in range(10):
            if now_s < election.wake_s:
                break
            do(election.poll(now_s))
        assert election.wake_s > now_s
    assert [fence for fence, _, _ in obeyed] == sorted({fence for fence, _, _ in obeyed})


def header(fence: Fence, leader: str, plan_hash: str, state: str) -> PlanHeader:
    return PlanHeader(
        fence, leader, plan_hash, "bad" if state == "bad" else "", "worse" if state == "worse" else ""
    )


@given(
    st.sets(st.integers(0, 500), min_size=1, max_size=60),
    st.integers(0, 300),
    st.data(),
)
def test_a_leader_by_a_view_within_the_tolerance_is_followed(values, term, data):
    mine = TicketBook()
    for value in values:
        mine.add(str(value), value)
    others = set(values)
    for value in data.draw(st.lists(st.integers(0, 500), max_size=mine.tolerance)):
        others ^= {value}
    theirs = TicketBook()
    for value in others:
        theirs.add(str(value), value)
    leader = theirs.leader(term)
    assert leader is None or leader not in mine or mine.entitles(leader, term)


@given(st.lists(st.tuples(FENCES, st.sampled_from("xy")), max_size=30), st.none() | FENCES)
def test_obedience_only_rises(generations, floor):
    worker = Obedience(None if floor is None else Fence(*floor))
    for fence, tag in generations:
        before, before_floor = worker.generation, worker.floor
        generation = Generation(*fence, tag)
        if worker.obey(generation):
            assert worker.generation == generation
            assert generation == before or before_floor is None or Fence(*fence) > before_floor
        else:
            assert (worker.generation, worker.floor) == (before, before_floor)


SIGNS = st.tuples(st.sampled_from(["heard", "silent", "left", "forget", "tick"]), PEERS, st.floats(0, 8))


@given(st.lists(SIGNS, max_size=60))
def test_membership_changes_by_its_table_and_stays_bounded(signs):
    members, now_s, known, heard_s = Membership(5, 10, max_peers=3), 0.0, {}, {}
    legal = {(old, new) for (old, _), new in TRANSITIONS.items()} | {(None, PeerState.ALIVE)}
    for sign, peer, pause_s in signs:
        now_s += pause_s
        if sign == "tick":
            changes = members.tick(now_s)
        elif sign in ("heard", "silent"):
            changes = getattr(members, sign)(peer, now_s)
        else:
            changes = getattr(members, sign)(peer) or []
        known = {peer: state for peer, state in known.items() if members.state(peer) is not None}
        for change in changes:
            assert known.get(change.peer) is change.old
            assert (change.old, change.new) in legal
            known[change.peer] = change.new
        if sign == "heard":
            heard_s[peer] = now_s
        assert known == {peer: members.state(peer) for peer in "abcde" if members.state(peer) is not None}
        assert len(members) <= 3
    members.tick(now_s + 10.001)  # now_s + 10 may lie a rounding error below ten seconds later
    assert all(members.state(peer) in (None, PeerState.GONE) for peer in "abcde")
