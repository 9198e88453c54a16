"""A job that runs moves for a clear gain that pays back, among no strangers, and for nothing less."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import pytest

from ravnest_p2p.core.planning.planner import make_plan
from ravnest_p2p.core.planning.promotion import LEAST_AGE_EPOCHS, objection
from ravnest_p2p.core.types import Capability, Fence, JobPhase, JobPlan, JobSpec, PeerId, Piece, Plan
from tests.unit.planning_cases import JOB, LEADER, OTHER, peer, peers, piece, planned, spec, status

ASKED = spec(total_batches=100_000)
EPOCH = 1 + LEAST_AGE_EPOCHS
FEW, MANY = peers(2), peers(8)
SAVED = piece(0, 8, 40, "p0", "p1")


def before(asked: JobSpec = ASKED, swarm: Sequence[Capability] = FEW) -> Plan:
    return planned(swarm, {JOB: asked})


def after(
    swarm: Sequence[Capability] = MANY,
    asked: JobSpec = ASKED,
    *,
    epoch: int = EPOCH,
    known: Collection[str] | None = None,
    pieces: Sequence[Piece] = (SAVED,),
    phase: JobPhase = JobPhase.RUNNING,
    more: dict | None = None,
) -> JobPlan:
    """The job's plan some epochs later, in a swarm that has changed."""
    old = before(asked)
    elders = {c.peer for c in swarm} if known is None else {PeerId(name) for name in known}
    plan = make_plan(
        swarm="swarm",
        fence=Fence(epoch, 0),
        leader=LEADER,
        seed=0,
        capabilities=swarm,
        jobs={JOB: asked, **(more or {})},
        statuses=status(old.jobs[0], phase, *pieces),
        previous=old,
        elders=lambda _: elders,
    )
    return plan.jobs[0]


def moved(job: JobPlan) -> bool:
    return job.generation != before().jobs[0].generation


def test_newcomers_that_gain_much_are_taken_in() -> None:
    new = after()
    assert moved(new)
    assert len(new.peers) > 2
    assert (new.batches_done, new.pieces) == (40, (SAVED,))


@pytest.mark.parametrize(
    "changes",
    [
        {"epoch": EPOCH - 1},
        {"known": ["p0", "p1"]},
        {"pieces": ()},
        {"swarm": FEW},
        {"swarm": [*FEW, peer("p2", flops=1e9)]},
        {"asked": replace(ASKED, total_batches=60)},
        {"more": {OTHER: spec(stages=8, clusters=8)}},
    ],
    ids=["young", "strangers", "nothing saved", "no newcomers", "little gain", "soon done", "another waits"],
)
def test_it_stays_where(changes) -> None:
    old = before(changes.get("asked", ASKED)).jobs[0]
    assert after(**changes) == old


def test_of_several_jobs_only_one_moves_at_a_time_and_takes_no_more_than_its_share() -> None:
    old = before()
    pair = [peer("q0"), peer("q1")]
    other = planned(pair, {OTHER: ASKED})
    both = replace(old, jobs=(*old.jobs, *other.jobs))
    swarm = [*MANY, *pair]
    plan = make_plan(
        swarm="swarm",
        fence=Fence(EPOCH, 0),
        leader=LEADER,
        seed=0,
        capabilities=swarm,
        jobs={JOB: ASKED, OTHER: ASKED},
        statuses=status(old.jobs[0], JobPhase.RUNNING, SAVED)
        | status(other.jobs[0], JobPhase.RUNNING, piece(0, 8, 40, "q0")),
        previous=both,
        elders=lambda _: {c.peer for c in swarm},
    )
    assert moved(plan.jobs[0])
    assert plan.jobs[1] == other.jobs[0]
    assert len(plan.jobs[0].peers) <= len(swarm) // 2


def against(new: JobPlan, **changes) -> str:
    settings = {
        "spec": ASKED,
        "capabilities": {c.peer: c for c in MANY},
        "elders": {c.peer for c in MANY},
        "pieces": (SAVED, piece(0, 8, 60, "p0")),
    }
    fence = changes.pop("fence", Fence(*new.generation[:2]))
    return objection(before().jobs[0], new, fence, **settings | changes)  # type: ignore[arg-type]


def test_followers_that_know_the_same_have_no_objection() -> None:
    assert against(after()) == ""
    assert against(after(), spec=None) == ""


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"elders": {"p0", "p1"}}, "strangers"),
        ({"pieces": (SAVED, piece(0, 8, 60, "p0"), piece(0, 8, 80, "p1"))}, "go back to batch 40"),
        ({"capabilities": {c.peer: c for c in FEW}}, "gain too little"),
        (
            {"capabilities": {c.peer: c for c in (*FEW, *(peer(f"p{n}", flops=1e8) for n in range(2, 8)))}},
            "gain",
        ),
        ({"fence": Fence(EPOCH, 1)}, "too young"),
        ({"spec": replace(ASKED, total_batches=60)}, "gain too little"),
    ],
)
def test_followers_object_to(changes, why) -> None:
    assert why in against(after(), **changes)


def test_a_generation_of_the_last_epochs_may_not_be_moved() -> None:
    new = after()
    young = replace(new, generation=new.generation._replace(epoch=EPOCH - 1))
    assert "too young" in against(young, fence=Fence(EPOCH - 1, 0))
