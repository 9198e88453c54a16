"""Whom a peer asks before it obeys a plan that moves running jobs, and how many questions that may cost."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from ravnest_p2p.core.errors import RemoteFault
from ravnest_p2p.core.planning.identity import plan_hash
from ravnest_p2p.core.types import Fence, Generation, JobId, JobPhase, JobPlan, PeerId, Plan
from ravnest_p2p.daemon import consent
from ravnest_p2p.daemon.consent import Consent
from ravnest_p2p.daemon.peer_messages import Overview, StageView, plain
from tests.unit.consent_cases import job_of, plan_of

OWN = PeerId("own")
JOB = JobId("a" * 64)


def job(term: int, peers: str, name: JobId = JOB) -> JobPlan:
    return job_of(Generation(1, term, "tag"), peers.split(), name)


def plan(term: int, *jobs: JobPlan) -> Plan:
    return plan_of(Fence(1, term), *jobs)


class World:
    """What peers would answer; a Consent of our own in it.

    Args:
        works: by peer, the generation that it works in, as a job plan.
        well: whether our own part goes well by our own words.
    """

    def __init__(
        self, works: dict[str, JobPlan], *known: Plan, elders: str = "a b c d own", well: bool = True
    ):
        self.asked: list[str] = []
        self.reads = 0
        self._works = works
        self._well = well
        view: Any = SimpleNamespace(
            capabilities={},
            plans={plan_hash(each): each for each in known},
            read_jobs=self._read_jobs,
            elders=lambda _: {PeerId(peer) for peer in elders.split()},
        )
        self.book: Any = SimpleNamespace(jobs={})
        hosts: Any = SimpleNamespace(overview=lambda _: self._overview("own"), run_well=self._run_well)
        self.consent = Consent(OWN, self, view, self.book, hosts)  # type: ignore[arg-type]

    async def _read_jobs(self) -> None:
        self.reads += 1

    async def _run_well(self, _: JobPlan) -> bool:
        return self._well

    def _overview(self, peer: str) -> Overview:
        at = self._works.get(peer)
        if at is None:
            return Overview()
        return Overview(stages=(StageView(job=at.job, generation=at.generation, phase=JobPhase.RUNNING),))

    async def call(self, peer: PeerId, name: str, body: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        assert name == "overview"
        self.asked.append(peer)
        if peer == "silent":
            raise RemoteFault("no answer")
        return plain(self._overview(peer))

    def doubt(self, new: Plan, previous: Plan | None) -> str:
        return asyncio.run(self.consent.doubt(new, previous))


def test_a_plan_that_moves_nothing_costs_no_question() -> None:
    before = plan(1, job(1, "a b"))
    world = World({}, before)
    assert world.doubt(plan(2, *before.jobs, job(2, "c d", JobId("b" * 64))), before) == ""
    assert (world.asked, world.reads) == ([], 0)


@pytest.mark.parametrize("members", ["a b", "own b"])
@pytest.mark.parametrize("new", [plan(2), plan(2, job(2, "a x"))], ids=["dropped", "formed anew"])
def test_a_plan_that_ends_what_lives_is_doubted(members: str, new: Plan) -> None:
    before = plan(1, job(1, members))
    world = World(dict.fromkeys(members.split(), before.jobs[0]), before)
    assert "moves generation 1.1.tag, which runs well" in world.doubt(new, before)


def test_what_is_dead_or_over_may_be_moved() -> None:
    before = plan(1, job(1, "a silent"))
    assert World({}, before).doubt(plan(2), before) == ""
    running = {"a": before.jobs[0]}
    world = World(running, before)
    assert world.doubt(plan(2), before) != "", "silence is no word against it"
    world.book.jobs[JOB] = SimpleNamespace(over=True)
    assert world.doubt(plan(2), before) == "", "cancelled"
    ours = plan(1, job(1, "own b"))
    assert World({"own": ours.jobs[0]}, ours, well=False).doubt(plan(2), ours) == ""


def test_a_living_generation_yields_to_a_higher_one_with_effect_but_not_to_strangers() -> None:
    before, rival = plan(1, job(1, "a b")), job(3, "c d")
    works = dict.fromkeys("ab", before.jobs[0]) | dict.fromkeys("cd", rival)
    assert World(works, before).doubt(plan(3, rival), before) == ""
    assert World(works, before, elders="a b c own").doubt(plan(3, rival), before) != ""
    assert World({**works, "d": before.jobs[0]}, before).doubt(plan(3, rival), before) != ""


def test_who_obeys_no_plan_learns_from_the_published_ones_what_runs() -> None:
    published = plan(1, job(1, "a b"))
    works = dict.fromkeys("ab", published.jobs[0])
    assert World(works, published).doubt(plan(2), None) != ""
    assert World({"a": published.jobs[0]}, published).doubt(plan(2), None) == "", "it has no effect"


def test_questions_are_bounded_however_many_jobs_and_plans_there_are() -> None:
    jobs = [job(1, f"a{n} b{n}", JobId(f"{n:064x}")) for n in range(100)]
    before = plan(1, *jobs)
    world = World({}, before)
    assert world.doubt(plan(2), before) == ""
    assert len(world.asked) <= 2 * consent.JOBS_ASKED_FOR
    for _ in range(2 * consent.LOOKED_INTO):
        last = world.doubt(plan(2), before)
    assert "too many such plans" in last
    assert len(world.asked) <= 2 * consent.JOBS_ASKED_FOR * consent.LOOKED_INTO
