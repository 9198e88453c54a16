"""A plan says whom its leader counted, and followers notice whom it did not."""

from __future__ import annotations

from dataclasses import replace

from ravnest_p2p.core.planning.turnout import MAX_IDLE, fingerprints, left_out
from ravnest_p2p.core.types import JobPhase, PeerId
from tests.unit.planning_cases import JOB, peers, planned, spec, status

SWARM = peers(20)
NAMES = [c.peer for c in SWARM]
ASKED = {JOB: spec(stages=2, clusters=3)}


def test_whoever_is_counted_is_not_left_out() -> None:
    plan = planned(SWARM, ASKED)
    assert len(plan.jobs[0].peers) == 6
    assert len(plan.idle) == len(SWARM) - 6 - len(plan.jobs[0].standbys)
    assert left_out(plan, NAMES) == []


def test_whom_the_leader_did_not_count_is_named() -> None:
    plan = planned(SWARM[:12], ASKED)
    assert left_out(plan, NAMES) == sorted(NAMES[12:])


def test_a_few_may_be_missing() -> None:
    assert left_out(planned(SWARM[:15], ASKED), NAMES) == []
    assert len(left_out(planned(SWARM[:14], ASKED), NAMES)) == 6
    assert left_out(planned(SWARM[:2], ASKED), NAMES[:4]) == []


def test_where_nothing_is_given_out_nobody_is_left_out() -> None:
    before = planned(SWARM, ASKED)
    kept = planned(
        SWARM[:12], ASKED, previous=before, statuses=status(before.jobs[0], JobPhase.RUNNING), epoch=2
    )
    assert left_out(replace(kept, idle=()), NAMES) == []


def test_a_waiting_job_gives_a_right_to_be_counted() -> None:
    assert left_out(planned(SWARM[:1], ASKED), NAMES)


def test_very_large_swarms_are_not_listed() -> None:
    names = [PeerId(f"p{number}") for number in range(MAX_IDLE + 1)]
    assert fingerprints(names) == ()
    assert left_out(planned(SWARM[:1], ASKED), names) == []
    assert list(fingerprints(names[:MAX_IDLE])) == sorted(fingerprints(names[MAX_IDLE - 1 :: -1]))
