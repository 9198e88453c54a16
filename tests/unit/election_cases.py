"""One peer's election with known tickets, and plans in a line each."""

from __future__ import annotations

from ravnest_p2p.core.ballot import Adopt, ElectionConfig, Explain, PlanHeader, Reconsider
from ravnest_p2p.core.election import Election
from ravnest_p2p.core.types import Fence

RULES = ElectionConfig("test", epoch_s=60, term_s=10, min_term_s=2, grace_s=4)
START_S = 6000.0
EPOCH = 100
OPEN_S = START_S + 4


def decisions(actions):
    return [action for action in actions if not isinstance(action, Explain)]


def peer(name="b", tickets="abcd", now_s=START_S, **settings) -> Election:
    """A peer whose tickets are known: a leads term 0, b term 1, ..."""
    election = Election(name, settings.pop("rules", RULES), now_s, **settings)
    election.poll(now_s)
    for value, other in enumerate(tickets):
        if other == name:
            election.own_ticket(election.epoch, value)
        else:
            election.ticket_seen(election.epoch, other, value)
    election.poll(now_s)
    return election


def plan(term=0, leader="a", epoch=EPOCH, verdict="", tag="") -> PlanHeader:
    return PlanHeader(Fence(epoch, term), leader, f"hash of {leader}{tag}", verdict)


def adopts(header):
    return [Adopt(header.fence, header.leader, header.plan_hash)]


def reconsiders(header):
    return Reconsider(header.fence, header.leader, header.plan_hash)
