"""One peer's part in one generation: what ends it, and what it says."""

from __future__ import annotations

import pytest

from ravnest_p2p.core.failover import Break, Done, RunMonitor, Stop
from ravnest_p2p.core.types import Generation, JobPhase, PeerId
from ravnest_p2p.core.wording import MAX_REASON_CHARS, bounded, bytes_text, peers_text
from tests.unit.planning_cases import JOB, peers, planned, spec

PLAN = planned(peers(4), {JOB: spec(stages=2, clusters=2)}).jobs[0]
OWN, *MATES = PLAN.peers
GENERATION = PLAN.generation


def monitor() -> RunMonitor:
    return RunMonitor(own=OWN, plan=PLAN, now_s=100.0, start_up_s=60.0, silence_s=20.0)


def running() -> RunMonitor:
    it = monitor()
    assert it.worker_state(JobPhase.RUNNING) is None
    for mate in MATES:
        assert it.member_heard(mate, GENERATION, JobPhase.RUNNING, "", 110.0) is None
    return it


def test_own_failure_breaks_the_generation_with_its_cause() -> None:
    it = running()
    it.piece_saved(12)
    action = it.worker_state(JobPhase.FAILED, "out of memory")
    assert action == Break(
        "this peer's worker failed: out of memory; the next plan goes on from batch 12", OWN
    )
    assert it.outcome == action


def test_reported_break_is_passed_on() -> None:
    assert running().member_heard(MATES[0], GENERATION, JobPhase.BROKEN, "disk is full", 111.0) == Break(
        "disk is full", MATES[0]
    )


def test_report_without_reason_still_names_its_author() -> None:
    action = running().member_heard(MATES[0], GENERATION, JobPhase.FAILED, "", 111.0)
    assert isinstance(action, Break)
    assert MATES[0] in action.reason


def test_death_names_who_and_how_long_and_what_next() -> None:
    it = running()
    assert it.tick(115.0) is None
    action = it.member_gone(MATES[1], "its streams ended")
    assert action == Break(
        f"peer {MATES[1]} is gone (its streams ended; silent for 5.0 s); the next plan goes on from batch 0",
        MATES[1],
    )


def test_start_up_is_bounded_and_names_the_late() -> None:
    it = monitor()
    it.worker_state(JobPhase.RUNNING)
    it.member_heard(MATES[0], GENERATION, JobPhase.RUNNING, "", 150.0)
    it.member_heard(MATES[1], GENERATION, JobPhase.WAITING, "", 150.0)
    assert it.tick(160.0) is None
    action = it.tick(161.0)
    assert isinstance(action, Break)
    assert action.who in MATES[1:]
    assert "waited 61 s" in action.reason
    assert MATES[1] in action.reason
    assert MATES[2] in action.reason
    assert MATES[0] not in action.reason


def test_own_worker_may_be_the_late_one() -> None:
    it = monitor()
    for mate in MATES:
        it.member_heard(mate, GENERATION, JobPhase.RUNNING, "", 160.0)
    action = it.tick(161.0)
    assert isinstance(action, Break)
    assert action.who == OWN


def test_silence_of_a_running_member_is_bounded() -> None:
    it = running()
    for mate in MATES[1:]:
        it.member_heard(mate, GENERATION, JobPhase.RUNNING, "", 130.0)
    assert it.tick(130.0) is None
    action = it.tick(131.0)
    assert isinstance(action, Break)
    assert action.who == MATES[0]
    assert "silent for 21 s" in action.reason


def test_late_report_of_the_start_does_not_undo_running() -> None:
    it = running()
    it.member_heard(MATES[0], GENERATION, JobPhase.WAITING, "", 125.0)
    for mate in MATES:
        it.member_heard(mate, GENERATION, JobPhase.RUNNING, "", 161.0)
    assert it.tick(162.0) is None


def test_higher_generation_stops_us_quietly() -> None:
    higher = Generation(GENERATION.epoch + 1, 0, "x")
    action = running().member_heard(MATES[0], higher, JobPhase.RUNNING, "", 111.0)
    assert isinstance(action, Stop)
    assert action.who == MATES[0]


def test_lower_generation_says_nothing() -> None:
    it = running()
    lower = Generation(GENERATION.epoch - 1, 9, "x")
    assert it.member_heard(MATES[0], lower, JobPhase.BROKEN, "old", 111.0) is None
    assert it.member_heard(MATES[0], None, JobPhase.WAITING, "", 111.0) is None


def test_generation_of_another_leader_breaks_ours() -> None:
    foreign = GENERATION._replace(tag="00000000")
    action = running().member_heard(MATES[0], foreign, JobPhase.RUNNING, "", 111.0)
    assert isinstance(action, Break)
    assert "another leader" in action.reason


def test_strangers_are_not_heard() -> None:
    it = running()
    assert it.member_heard(PeerId("q"), GENERATION, JobPhase.BROKEN, "boo", 111.0) is None
    assert it.member_gone(PeerId("q"), "left") is None


def test_done_when_all_are_done_and_the_finished_may_leave() -> None:
    it = running()
    for mate in MATES:
        assert it.member_heard(mate, GENERATION, JobPhase.DONE, "", 112.0) is None
    assert it.member_gone(MATES[0], "went home") is None
    assert it.tick(1000.0) is None
    assert it.worker_state(JobPhase.DONE) == Done()


def test_done_by_the_last_report() -> None:
    it = running()
    assert it.worker_state(JobPhase.DONE) is None
    outcomes = [it.member_heard(mate, GENERATION, JobPhase.DONE, "", 112.0) for mate in MATES]
    assert outcomes == [None, None, Done()]


def test_only_one_action_is_final() -> None:
    it = running()
    assert it.worker_state(JobPhase.FAILED, "x") is not None
    assert it.worker_state(JobPhase.FAILED, "y") is None
    assert it.member_gone(MATES[0], "z") is None
    assert it.member_heard(MATES[0], GENERATION, JobPhase.BROKEN, "", 500.0) is None
    assert it.tick(500.0) is None


def test_only_members_have_a_part() -> None:
    with pytest.raises(ValueError, match="no member"):
        RunMonitor(own=PeerId("q"), plan=PLAN, now_s=0.0)


def test_foreign_text_is_bounded_and_on_one_line() -> None:
    assert len(bounded("x" * 10_000_000)) == MAX_REASON_CHARS
    assert bounded("a\nb\x1b[31m") == "a b?[31m"


def test_sizes_and_peers_are_short() -> None:
    assert bytes_text(310_000_000) == "310 MB"
    assert bytes_text(1_240_000_000) == "1.2 GB"
    assert bytes_text(64_000_000_000) == "64 GB"
    assert peers_text([PeerId("b"), PeerId("a")]) == "a, b"
    assert peers_text([PeerId(f"12D3KooW{n}abcdefgh") for n in range(8)]).endswith("and 2 more")
