"""Each constraint that a published plan can break is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from ravnest_p2p.core.errors import PlanError
from ravnest_p2p.core.planning.check import check_plan
from ravnest_p2p.core.planning.identity import plan_hash, tagged
from ravnest_p2p.core.planning.overlap import OVERLAPS
from ravnest_p2p.core.types import ClusterPlan, Fence, Generation, JobPhase, JobPlan, PeerId, Plan
from tests.unit.planning_cases import JOB, OTHER, peer, peers, piece, planned, spec, status

SPEC = spec(stages=2, clusters=2)
JOBS = {JOB: SPEC}
SWARM = peers(6)


def good() -> Plan:
    return planned(SWARM, JOBS)


def with_job(plan: Plan, job: JobPlan) -> Plan:
    """The plan with another first job plan, correctly tagged."""
    return replace(plan, jobs=(tagged(job, plan.fence), *plan.jobs[1:]))


def with_stage(job: JobPlan, **changes: object) -> JobPlan:
    """The job plan with another first stage in its first cluster."""
    stages = job.clusters[0].stages
    changed = replace(stages[0], **changes)  # type: ignore[arg-type]
    return replace(job, clusters=(replace(job.clusters[0], stages=(changed, *stages[1:])), *job.clusters[1:]))


def with_overlap(job: JobPlan, overlap: int) -> JobPlan:
    """The job plan with another overlap of all its clusters."""
    return replace(job, clusters=tuple(replace(cluster, overlap=overlap) for cluster in job.clusters))


def test_a_stage_recomputes_as_the_job_wants() -> None:
    for checkpoint, wrong in (("never", True), ("always", False)):
        jobs = {JOB: spec(stages=2, clusters=2, checkpoint=checkpoint)}
        plan = planned(SWARM, jobs)
        bad = with_job(plan, with_stage(plan.jobs[0], recompute=wrong))
        refuse(bad, "stage 0 recomputes otherwise", jobs=jobs)
    auto = {JOB: spec(stages=2, clusters=2, checkpoint="auto")}
    plan = with_job(planned(SWARM, JOBS), with_stage(planned(SWARM, JOBS).jobs[0], recompute=True))
    check_plan(plan, capabilities=SWARM, jobs=auto, previous=None)


@pytest.mark.parametrize(
    ("mode", "overlap", "allowed"),
    [
        ("never", 0, "0 to 0"),
        ("never", 1, "0 to 0"),
        ("auto", 0, "0 to 4"),
        ("auto", 4, "0 to 4"),
        ("auto", 5, "0 to 4"),
        ("auto", -1, "0 to 4"),
        ("always", 0, "1 to 4"),
        ("always", 4, "1 to 4"),
        (None, 4, "0 to 4"),
        (None, 1 << 62, "0 to 4"),
    ],
)
def test_means_are_taken_as_late_as_the_job_and_kappa_allow(
    mode: str | None, overlap: int, allowed: str
) -> None:
    plan = good()
    jobs = {} if mode is None else {JOB: spec(stages=2, clusters=2, overlap=mode)}
    changed = with_job(plan, with_overlap(plan.jobs[0], overlap))
    least, most = map(int, allowed.split(" to "))
    if least <= overlap <= most:
        check_plan(changed, capabilities=SWARM, jobs=jobs, previous=None)
    else:
        refuse(changed, f"{overlap} updates before a mean is taken, though {allowed} are allowed", jobs=jobs)


def test_the_tag_covers_when_means_are_taken() -> None:
    plan = good()
    job = plan.jobs[0]
    refuse(replace(plan, jobs=(with_overlap(job, job.clusters[0].overlap - 1),)), "wrong tag")


@pytest.mark.parametrize("mode", OVERLAPS)
def test_one_cluster_takes_no_mean(mode: str) -> None:
    jobs = {JOB: spec(stages=2, clusters=1, overlap=mode)}
    plan = planned(SWARM, jobs)
    changed = with_job(plan, with_overlap(plan.jobs[0], 1))
    for known in (jobs, {}):
        refuse(changed, "1 updates before a mean is taken, though 0 to 0", jobs=known)


def refuse(plan: Plan, match: str, **facts: object) -> None:
    known = {"capabilities": SWARM, "jobs": JOBS, "previous": None, **facts}
    with pytest.raises(PlanError, match=match):
        check_plan(plan, **known)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda job: with_stage(job, lo=1), "do not follow"),
        (lambda job: with_stage(job, hi=3), "do not follow"),
        (lambda job: with_stage(job, hi=0), "do not follow"),
        (lambda job: with_stage(job, staleness=5), "staleness 5 at stage 0, at most 4"),
        (lambda job: with_stage(job, staleness=-1), "staleness"),
        (lambda job: with_stage(job, peer=job.peers[1]), "more than one stage"),
        (lambda job: replace(job, standbys=(job.peers[1],)), "stage and standby"),
        (
            lambda job: replace(job, clusters=(replace(job.clusters[0], updates_per_round=0),)),
            "updates a round",
        ),
        (lambda job: replace(job, clusters=(ClusterPlan((), 4),)), "stages"),
        (lambda job: replace(job, ring_order=(0, 0)), "no order of 2 clusters"),
        (lambda job: replace(job, ring_order=(1,)), "no order of 2 clusters"),
        (lambda job: replace(job, ring_order=(1, 2)), "no order of 2 clusters"),
        (lambda job: replace(job, ring_columns=0), "0 columns"),
        (lambda job: replace(job, ring_columns=3), "3 columns of 2 clusters"),
        (lambda job: replace(job, clusters=(), reason=""), "assigns state|without a reason"),
        (lambda job: replace(job, batches_done=4), "without saved pieces"),
        (lambda job: replace(job, batches_done=5000), "of 1000"),
        (lambda job: replace(job, version=3), "without saved pieces"),
        (lambda job: replace(job, pieces=(piece(0, 8, 4, "p0"),)), "another round"),
        (
            lambda job: replace(job, batches_done=4, version=4, pieces=(piece(0, 7, 4, "p0"),)),
            "end at layer 7",
        ),
        (lambda job: replace(job, batches_done=4, version=4, pieces=(piece(1, 8, 4, "p0"),)), "layer 0"),
        (lambda job: replace(job, batches_done=4, version=9, pieces=(piece(0, 8, 4, "p0"),)), "version"),
        (lambda job: replace(job, batches_done=4, version=4, pieces=(piece(0, 8, 4),)), "nobody holds"),
    ],
)
def test_broken_structure_is_refused(change: Callable[[JobPlan], JobPlan], match: str) -> None:
    plan = good()
    refuse(with_job(plan, change(plan.jobs[0])), match)


def test_any_order_of_the_clusters_in_the_rings_may_be_obeyed() -> None:
    plan = good()
    turned = with_job(plan, replace(plan.jobs[0], ring_order=(1, 0), ring_columns=2))
    check_plan(turned, capabilities=SWARM, jobs=JOBS, previous=None)


def test_more_clusters_or_other_stages_than_wanted_are_refused() -> None:
    refuse(good(), "2 clusters, though 1", jobs={JOB: spec(stages=2, clusters=1)})
    refuse(good(), "2 stages, though 4", jobs={JOB: spec(stages=4, clusters=2)})


def test_job_planned_twice_is_refused() -> None:
    plan = good()
    waits = tagged(JobPlan(JOB, plan.jobs[0].generation, (), reason="waits"), plan.fence)
    refuse(replace(plan, jobs=(*plan.jobs, waits)), "planned twice")


def test_peer_of_two_jobs_is_refused() -> None:
    plan = good()
    again = tagged(replace(plan.jobs[0], job=OTHER), plan.fence)
    refuse(replace(plan, jobs=(*plan.jobs, again)), "more than one stage")


def test_wrong_tag_is_refused() -> None:
    plan = good()
    forged = replace(plan.jobs[0], generation=plan.jobs[0].generation._replace(tag="deadbeef"))
    refuse(replace(plan, jobs=(forged,)), "wrong tag")


def test_generation_from_the_future_is_refused() -> None:
    plan = good()
    refuse(replace(plan, jobs=(tagged(plan.jobs[0], Fence(2, 0)),)), "above the plan's fence")


def test_memory_is_respected_with_tolerance() -> None:
    plan = good()
    small = [peer("p0", memory_mb=330), *SWARM[1:]]
    refuse(plan, "stage 0 needs", capabilities=small)
    need_mb = 300 * 1.048576 + 1.6 * (4 * 4 * 7 + 4 * 3)
    nearly = [peer("p0", memory_mb=int(need_mb * 0.95)), *SWARM[1:]]
    check_plan(plan, capabilities=nearly, jobs=JOBS, previous=None)


def test_work_that_an_owner_does_not_allow_is_refused() -> None:
    plan = planned(peers(2), {JOB: spec(stages=2, clusters=1)})
    unwilling = [*peers(1), peer("p1", microbatch_flops=1.0)]
    with pytest.raises(PlanError, match="takes no part in so large a job"):
        check_plan(plan, capabilities=unwilling, jobs={JOB: spec(stages=2, clusters=1)}, previous=None)


def test_some_peers_may_be_unknown_but_not_many() -> None:
    plan = good()
    check_plan(plan, capabilities=SWARM[1:], jobs=JOBS, previous=None)
    refuse(plan, "2 of 4 peers", capabilities=SWARM[2:])


def test_kept_generation_needs_no_known_peers() -> None:
    first = good()
    second = planned(SWARM, JOBS, statuses=status(first.jobs[0], JobPhase.RUNNING), previous=first, epoch=2)
    check_plan(second, capabilities=[], jobs=JOBS, previous=first)
    check_plan(second, capabilities=[], jobs=JOBS, previous=None)


def test_saved_progress_is_not_given_up() -> None:
    first = planned(SWARM, JOBS)
    broken = status(first.jobs[0], JobPhase.BROKEN, piece(0, 8, 8, "p0", "p1"))
    second = planned(SWARM, JOBS, statuses=broken, previous=first, epoch=2)
    fresh = with_job(
        replace(second, fence=Fence(3, 0)), replace(second.jobs[0], batches_done=0, pieces=(), version=0)
    )
    refuse(fresh, "goes back to batch 0, though 8", previous=second)


def test_unknown_job_is_checked_for_structure() -> None:
    plan = good()
    check_plan(plan, capabilities=SWARM, jobs={}, previous=None)
    refuse(with_job(plan, with_stage(plan.jobs[0], hi=3)), "do not follow", jobs={})


def test_plan_hash_tells_plans_apart() -> None:
    plan = good()
    assert plan_hash(plan) == plan_hash(good())
    assert plan_hash(plan) != plan_hash(replace(plan, seed=1))
    assert plan_hash(None) == ""


def test_tag_depends_on_members_and_fence() -> None:
    job = good().jobs[0]
    other = with_stage(job, peer=PeerId("q"))
    tags = {tagged(job, Fence(1, 0)).generation, tagged(other, Fence(1, 0)).generation}
    assert len({generation.tag for generation in tags}) == 2
    assert tagged(job, Fence(1, 1)).generation.tag != tagged(job, Fence(1, 0)).generation.tag
    assert tagged(replace(job, generation=Generation(9, 9, "x")), Fence(1, 0)) == tagged(job, Fence(1, 0))
