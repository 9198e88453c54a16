"""Who may end what runs: only those that work in it, or a generation above it that does as well."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ravnest_p2p.core.consent import (
    NEWEST,
    Generations,
    Said,
    has_effect,
    lives,
    moved_jobs,
    successor,
    what_runs,
)
from ravnest_p2p.core.types import Fence, Generation, JobId, JobPhase, JobPlan, PeerId, Plan
from tests.unit.consent_cases import job_of, plan_of

OURS, THEIRS = Generation(5, 1, "ours"), Generation(5, 4, "theirs")
WAITING, RUNNING, BROKEN, DONE = JobPhase.WAITING, JobPhase.RUNNING, JobPhase.BROKEN, JobPhase.DONE


def job(generation: Generation = OURS, peers: str = "ab", name: str = "job") -> JobPlan:
    return job_of(generation, peers, name)


def plan(*jobs: JobPlan, term: int = 1) -> Plan:
    return plan_of(Fence(5, term), *jobs)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([(OURS, RUNNING), (OURS, RUNNING)], True),
        ([(OURS, WAITING)], True),
        ([(OURS, RUNNING), (None, WAITING)], False),
        ([(OURS, RUNNING), (None, DONE)], True),
        ([(OURS, RUNNING), (OURS, DONE)], True),
        ([(OURS, DONE), (None, DONE)], False),
        ([(OURS, RUNNING), (OURS, BROKEN)], False),
        ([(OURS, RUNNING), (THEIRS, RUNNING)], False),
        ([(None, WAITING)], False),
        ([], False),
    ],
)
def test_a_generation_lives_while_one_works_in_it_and_none_has_given_it_up(said, expected):
    assert lives(OURS, said) is expected


def test_who_has_no_part_in_what_is_forming_may_still_take_it_up():
    assert lives(OURS, [(OURS, RUNNING), (None, WAITING)], forming=True)
    assert not lives(OURS, [(OURS, RUNNING), (THEIRS, RUNNING)], forming=True)
    assert not lives(OURS, [(None, WAITING)], forming=True)


def test_it_has_effect_where_all_that_were_asked_work_in_it():
    assert has_effect(OURS, [(OURS, RUNNING), (OURS, WAITING)], 2)
    assert not has_effect(OURS, [(OURS, RUNNING)], 2)
    assert not has_effect(OURS, [(OURS, RUNNING), (None, WAITING)], 2)
    assert not has_effect(OURS, [], 0)


def test_moved_jobs_are_those_of_the_plan_obeyed_that_lose_their_generation():
    waits = JobPlan(JobId("waits"), Generation(5, 1, ""), (), reason="no peers")
    kept, lost, ended = job(name="kept"), job(name="lost"), job(name="ended")
    before = plan(kept, lost, ended, waits)
    after = plan(kept, replace(lost, generation=THEIRS), term=2)
    assert moved_jobs(after, before, {JobId("ended")}) == {JobId("lost"): lost}
    assert moved_jobs(after, None, ()) == {}


def test_only_a_higher_generation_of_the_same_job_without_strangers_succeeds():
    elders = {PeerId(peer) for peer in "abcd"}
    assert successor(job(), [job(THEIRS, "cd")], elders) == job(THEIRS, "cd")
    for other in (
        job(Generation(5, 0, "lower"), "cd"),
        job(OURS, "cd"),
        job(THEIRS, "cx"),
        job(THEIRS, "cd", name="other"),
        JobPlan(JobId("job"), THEIRS, ()),
    ):
        assert successor(job(), [other], elders) is None
    highest = job(Generation(6, 0, "highest"), "cd")
    assert successor(job(), [job(THEIRS, "cd"), highest], elders) == highest


def test_known_generations_are_the_newest_few_of_each_job():
    known = Generations()
    for term in range(9):
        known.add(plan(job(Generation(5, term, ""))))
    assert [other.generation.term for other in known.newest(JobId("job"))] == [8, 7, 6, 5][:NEWEST]
    assert known.newest(JobId("unheard of")) == []
    assert known.ended_by(plan()) == {"job"}
    assert known.ended_by(plan(), over={JobId("job")}) == set()
    alone = Generations()
    alone.add(plan(job()))
    assert alone.ended_by(plan(job(), term=7)) == set()


def runs(
    previous: Plan | None, *claims: tuple[str, JobPlan], strangers: str = "", idle: str = ""
) -> JobPlan | None:
    """What runs of the job, where each peer works in what it claims, and idle ones answer too."""
    said: dict[PeerId, Said] = {PeerId(peer): (other.generation, RUNNING) for peer, other in claims}
    said |= {PeerId(peer): (None, WAITING) for peer in idle}
    elders = {PeerId(peer) for peer in "abcdefgh"} - {PeerId(peer) for peer in strangers}
    name = JobId("job")
    return what_runs(previous, [c for _, c in claims], {name: said}, lambda _: elders).get(name)


def test_what_runs_is_the_plan_obeyed_unless_members_say_otherwise():
    ours, theirs = job(), job(THEIRS, "cd")
    both = (("a", ours), ("b", ours), ("c", theirs), ("d", theirs))
    assert runs(plan(ours)) == ours
    assert runs(plan(ours), ("a", ours)) == ours
    assert runs(plan(ours), *both) == theirs, "after a partition the higher one of both goes on"
    assert runs(plan(theirs), *both) == theirs
    assert runs(plan(ours), *both, strangers="d") == ours, "a thief and a friend claim to run it"
    assert runs(plan(ours), *both[:3]) == ours, "one of its members does not run it"
    assert runs(plan(ours), *both[2:]) == theirs, "ours is dead"
    assert runs(None, *both) == theirs, "a newcomer"
    assert runs(None, ("a", ours), ("b", ours), ("c", theirs)) == ours, "what has effect comes first"
    assert runs(None, ("c", theirs), idle="d") is None, "half of another's plan"
    assert runs(plan(theirs), ("c", theirs), idle="d") == theirs, "half of ours, so far"
    assert runs(None) is None
