"""Users take turns, however many jobs each of them has."""

from __future__ import annotations

from ravnest_p2p.core.planning.fairness import next_turn
from ravnest_p2p.core.planning.planner import make_plan
from ravnest_p2p.core.types import Fence, JobId, PeerId
from tests.unit.planning_cases import LEADER, peers, spec

A, B, C, D = (JobId(name * 64) for name in "abcd")
ANN, BOB = PeerId("ann"), PeerId("bob")
OWNERS = {A: ANN, B: ANN, C: ANN, D: BOB}
NEW = {A: False, B: False, C: False, D: False}


def test_the_first_is_the_oldest_and_gets_a_users_share_for_one_of_its_jobs() -> None:
    assert next_turn(NEW, OWNERS, {}, 12) == (A, 2)
    assert next_turn({D: False, A: False}, OWNERS, {}, 12) == (D, 6)


def test_who_has_fewer_peers_is_next() -> None:
    assert next_turn({B: False, C: False, D: False}, OWNERS, {A: 2}, 10) == (D, 5)
    assert next_turn({B: False, C: False}, OWNERS, {A: 2, D: 5}, 5) == (B, 2)


def test_what_had_begun_goes_first_whoever_owns_it() -> None:
    assert next_turn({A: False, D: True, B: True}, OWNERS, {C: 1}, 6) == (D, 3)
    assert next_turn({A: False, B: True}, OWNERS, {C: 9}, 6) == (B, 6)


def test_without_owners_each_job_is_for_itself() -> None:
    assert next_turn(NEW, {}, {}, 8) == (A, 2)


def test_everybody_gets_one_peer_at_least() -> None:
    assert next_turn(NEW, OWNERS, {}, 0) == (A, 1)


def test_a_user_with_one_job_is_served_beside_one_with_three() -> None:
    """Four peers, four jobs of two: by order alone the first two would take all."""
    plan = make_plan(
        swarm="swarm",
        fence=Fence(1, 0),
        leader=LEADER,
        seed=0,
        capabilities=peers(4),
        jobs=dict.fromkeys([A, B, C, D], spec(stages=2, clusters=1)),
        statuses={},
        previous=None,
        owners=OWNERS,
    )
    assert [bool(job.clusters) for job in plan.jobs] == [True, False, False, True]
