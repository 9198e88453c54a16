"""What `ravnest epoch` is told: the plan with its predicted speed, and who obeys and refused what."""

from __future__ import annotations

from ravnest_p2p.core.ballot import Phase
from ravnest_p2p.core.planning.identity import plan_hash
from ravnest_p2p.core.types import Fence, PeerId
from ravnest_p2p.daemon.epoch_view import epoch_view
from ravnest_p2p.daemon.peer_messages import BallotTold, Refusal, parse, plain
from tests.unit.planning_cases import JOB, LEADER, peers, planned, spec

SWARM = peers(4)
JOBS = {JOB: spec(stages=2, clusters=2)}
PLAN = planned(SWARM, JOBS)
OWN = BallotTold(epoch=1, term=0, phase=Phase.LED, leader=LEADER, obeys=PLAN.fence, plan_hash=plan_hash(PLAN))
OTHER = BallotTold(
    epoch=1,
    term=1,
    phase=Phase.OPEN,
    obeys=Fence(0, 3),
    plan_hash="ab",
    refused=(Refusal(epoch=1, term=0, leader=LEADER, why="it moves a healthy cluster"),),
)


def test_what_is_planned_and_who_obeys_it() -> None:
    offers = {offer.peer: offer for offer in SWARM}
    ballots = {PeerId("p1"): OTHER, PeerId("p0"): OWN}
    found = epoch_view(OWN, PLAN, ballots, JOBS, offers, epoch_s=60.0, ends_in_s=5.0)
    assert (found["epoch"], found["term"], found["phase"], found["leader"]) == (1, 0, "led", LEADER)
    job = found["plan"]["jobs"][0]
    assert len(job["clusters"]) == 2
    assert job["updates_per_s"] > 0.0
    first, second = found["peers"]
    assert (first["peer"], first["agrees"], first["obeys"]) == ("p0", True, [1, 0])
    assert (second["agrees"], second["obeys"], len(second["refused"])) == (False, [0, 3], 1)


def test_speed_is_not_predicted_with_peers_that_nobody_knows() -> None:
    found = epoch_view(OWN, PLAN, {}, JOBS, {}, epoch_s=60.0, ends_in_s=5.0)
    assert found["plan"]["jobs"][0]["updates_per_s"] is None
    assert epoch_view(OWN, PLAN, {}, {}, {}, epoch_s=60.0, ends_in_s=5.0)["plan"]["jobs"][0]["name"] == ""


def test_before_any_plan() -> None:
    own = BallotTold(epoch=4, term=0, phase=Phase.SPREADING)
    found = epoch_view(own, None, {PeerId("p0"): own}, {}, {}, epoch_s=60.0, ends_in_s=5.0)
    assert found["plan"] is None
    assert found["peers"][0]["obeys"] is None


def test_a_ballot_survives_the_wire() -> None:
    assert parse(BallotTold, plain(OTHER)) == OTHER
