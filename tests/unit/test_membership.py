"""Membership: the table of states, one cell at a time, and its bounds."""

import pytest

from ravnest_p2p.core.errors import ConfigError
from ravnest_p2p.core.membership import TRANSITIONS, Changed, Membership, PeerState, Sign

ALIVE, SUSPECT, GONE = PeerState.ALIVE, PeerState.SUSPECT, PeerState.GONE


def membership(max_peers: int = 10) -> Membership:
    return Membership(suspect_after_s=5, gone_after_s=15, max_peers=max_peers)


def test_life_of_a_peer():
    members = membership()
    assert members.heard("a", 0) == [Changed("a", None, ALIVE, "heard")]
    assert members.heard("a", 1) == []
    assert members.tick(5.9) == []
    assert members.tick(6) == [Changed("a", ALIVE, SUSPECT, "no sign of life")]
    assert members.tick(7) == []
    assert members.heard("a", 8) == [Changed("a", SUSPECT, ALIVE, "heard")]
    assert members.silent("a", 9) == [Changed("a", ALIVE, SUSPECT, "a ping failed")]
    assert members.silent("a", 10) == []
    assert members.tick(23) == [Changed("a", SUSPECT, GONE, "no sign of life for too long")]
    assert members.tick(100) == []
    assert members.silent("a", 101) == []
    assert members.heard("a", 102) == [Changed("a", GONE, ALIVE, "heard")]
    assert members.state("a") is ALIVE


def test_long_silence_skips_suspect():
    members = membership()
    members.heard("a", 0)
    assert members.tick(60) == [Changed("a", ALIVE, GONE, "no sign of life for too long")]


def test_failed_ping_after_long_silence_is_gone():
    members = membership()
    members.heard("a", 0)
    assert [c.new for c in members.silent("a", 15)] == [GONE]


def test_leaving_is_immediate_and_returning_possible():
    members = membership()
    assert members.left("a") == []
    members.heard("a", 0)
    assert members.left("a") == [Changed("a", ALIVE, GONE, "it has left")]
    assert members.left("a") == []
    assert [c.new for c in members.heard("a", 1)] == [ALIVE]


def test_a_peer_heard_later_outlives_one_heard_earlier():
    members = membership()
    for peer, at_s in (("a", 0), ("b", 1), ("a", 4)):
        members.heard(peer, at_s)
    assert [c.peer for c in members.tick(6)] == ["b"]
    assert members.peers(SUSPECT) == ("b",)
    assert members.peers(ALIVE) == ("a",)


def test_room_is_made_by_the_gone_then_the_suspect_never_the_alive():
    members = membership(max_peers=2)
    members.heard("a", 0)
    members.heard("b", 0)
    assert members.heard("c", 1) == []
    members.silent("a", 2)
    assert [c.peer for c in members.heard("c", 3)] == ["c"]
    assert members.state("a") is None
    members.left("c")
    members.silent("b", 4)
    members.heard("d", 5)
    assert (members.state("b"), members.state("c"), members.state("d")) == (SUSPECT, None, ALIVE)
    assert len(members) == 2


def test_forget():
    members = membership()
    members.heard("a", 0)
    members.left("a")
    members.forget("a")
    members.heard("b", 0)
    members.forget("b")
    assert len(members) == 0
    assert members.tick(99) == []


def test_table_never_leaves_gone_but_by_a_sign_of_life():
    assert {sign for (state, sign), new in TRANSITIONS.items() if state is GONE and new is not GONE} == {
        Sign.HEARD
    }


@pytest.mark.parametrize(("suspect_s", "gone_s", "peers"), [(0, 1, 1), (2, 2, 1), (3, 2, 1), (1, 2, 0)])
def test_senseless_settings_are_refused(suspect_s, gone_s, peers):
    with pytest.raises(ConfigError):
        Membership(suspect_s, gone_s, peers)
