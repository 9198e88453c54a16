"""The plan: forming, keeping, repairing, waiting, resuming."""

from __future__ import annotations

import time
from itertools import pairwise

from ravnest_p2p.core.planning.identity import generation_tag, plan_hash
from ravnest_p2p.core.types import JobPhase, JobStatus
from tests.unit.planning_cases import JOB, OTHER, peer, peers, piece, planned, shape, spec, status


def test_wanted_shape_is_formed() -> None:
    job = planned(peers(4), {JOB: spec(stages=2, clusters=2)}).jobs[0]
    assert [len(cluster) for cluster in shape(job)] == [2, 2]
    assert [(s.lo, s.hi) for s in job.clusters[0].stages] == [(0, 4), (4, 8)]
    assert [c.updates_per_round for c in job.clusters] == [4, 4]
    assert (job.batches_done, job.version, job.pieces, job.reason) == (0, 0, (), "")
    assert job.generation[:2] == (1, 0)
    assert job.generation.tag == generation_tag(job)


def test_similar_peers_form_a_cluster() -> None:
    swarm = [peer("f1", flops=1e11), peer("s1"), peer("f2", flops=1e11), peer("s2")]
    job = planned(swarm, {JOB: spec(stages=2, clusters=2)}).jobs[0]
    assert [sorted(cluster) for cluster in shape(job)] == [["f1", "f2"], ["s1", "s2"]]
    assert job.clusters[0].updates_per_round > job.clusters[1].updates_per_round >= 1


def test_near_peers_form_a_cluster_where_no_window_hides_the_latency() -> None:
    west, east = (0.0, 0.0), (0.5, 0.0)
    swarm = [peer("w1", at_s=west), peer("e1", at_s=east), peer("w2", at_s=west), peer("e2", at_s=east)]
    job = planned(swarm, {JOB: spec(stages=2, clusters=2, staleness_bound=1)}).jobs[0]
    assert sorted(sorted(cluster) for cluster in shape(job)) == [["e1", "e2"], ["w1", "w2"]]


def test_many_clusters_form_rings_of_near_ones_in_some_columns() -> None:
    far = {"w": (0.0, 0.0), "e": (0.5, 0.0)}
    swarm = [peer(f"{n}{'we'[n % 2]}", at_s=far["we"[n % 2]]) for n in range(12)]
    job = planned(swarm, {JOB: spec(stages=1, clusters=12)}).jobs[0]
    sides = [shape(job)[number][0][-1] for number in job.ring_order]
    assert sorted(job.ring_order) == list(range(12))
    assert sum(a != b for a, b in pairwise(sides)) == 1, "one way from the west to the east"
    assert 1 < job.ring_columns < 12
    few = planned(swarm[:4], {JOB: spec(stages=1, clusters=4)}).jobs[0]
    assert (few.ring_order, few.ring_columns) == ((), 1)


def test_large_and_small_memories_are_mixed_where_the_model_needs_it() -> None:
    swarm = [peer("big1"), peer("big2"), peer("small1", memory_mb=720), peer("small2", memory_mb=720)]
    job = planned(swarm, {JOB: spec(stages=2, clusters=2, param_mb=40)}).jobs[0]
    assert sorted(sorted(cluster) for cluster in shape(job)) in (
        [["big1", "small1"], ["big2", "small2"]],
        [["big1", "small2"], ["big2", "small1"]],
    )


def test_too_few_peers_wait_and_say_for_what() -> None:
    job = planned(peers(3), {JOB: spec(stages=2, clusters=2)}).jobs[0]
    assert job.clusters == ()
    assert "needs 2 clusters × 2 stages = 4 peers" in job.reason
    assert "3 are online (p0 4.0 GB, p1 4.0 GB, p2 4.0 GB)" in job.reason
    assert "start 1 more ravnestd, or submit with clusters=1" in job.reason


def test_peers_that_lend_nothing_are_not_counted_as_there() -> None:
    swarm = [*peers(3), peer("bootstrap", memory_mb=0)]
    job = planned(swarm, {JOB: spec(stages=2, clusters=2)}).jobs[0]
    assert "3 are online (p0 4.0 GB, p1 4.0 GB, p2 4.0 GB): start 1 more ravnestd" in job.reason


def test_owners_that_allow_less_work_are_left_out() -> None:
    job = spec(stages=2, clusters=1)
    work = sum(layer.flops for layer in job.layers)
    swarm = [*peers(2), *(peer(f"q{n}", flops=1e11, microbatch_flops=work * 0.99) for n in range(3))]
    plan = planned(swarm, {JOB: job}).jobs[0]
    assert set(plan.peers) == {"p0", "p1"}
    assert plan.standbys == ()
    waits = planned(swarm[1:], {JOB: job}).jobs[0]
    assert "1 is online (p1 4.0 GB): start 1 more ravnestd" in waits.reason
    assert "3 more peers would be free, but not for micro-batches of" in waits.reason


def test_too_little_memory_waits_and_says_how_much() -> None:
    job = planned(peers(2, memory_mb=320), {JOB: spec(stages=2, clusters=1, param_mb=40)}).jobs[0]
    assert job.clusters == ()
    assert "with more memory" in job.reason


def test_more_stages_than_layers_says_so() -> None:
    assert "submit with stages=2" in planned(peers(4), {JOB: spec(2, stages=3)}).jobs[0].reason


def test_nobody_online_waits() -> None:
    assert "none is online" in planned([peer("a", online=False)], {JOB: spec()}).jobs[0].reason


def test_malformed_manifest_waits_instead_of_breaking_the_planner() -> None:
    assert "layers" in planned(peers(2), {JOB: spec(0)}).jobs[0].reason
    assert "manifest" in planned(peers(2), {JOB: spec(m=0)}).jobs[0].reason


def test_planner_chooses_a_shape_that_fits() -> None:
    alone = planned(peers(1), {JOB: spec()}).jobs[0]
    assert shape(alone) == [["p0"]]
    split = planned(peers(3, memory_mb=1600), {JOB: spec(param_mb=40)}).jobs[0]
    assert len(split.clusters) == 1
    assert len(split.peers) == 3


def test_running_generation_is_kept_verbatim() -> None:
    jobs = {JOB: spec(stages=2, clusters=1)}
    first = planned(peers(2), jobs)
    running = status(first.jobs[0], JobPhase.RUNNING)
    richer = [*peers(2), peer("q", flops=1e13, bps=1e10)]
    second = planned(richer, jobs, statuses=running, previous=first, epoch=2)
    assert second.jobs == first.jobs
    assert second.previous_hash == plan_hash(first)
    gone = planned(peers(1), jobs, statuses=running, previous=second, epoch=3)
    assert gone.jobs == first.jobs


def test_planned_job_is_kept_until_its_members_report() -> None:
    jobs = {JOB: spec(stages=2, clusters=1)}
    first = planned(peers(3), jobs)
    assert planned(peers(3), jobs, previous=first, epoch=2).jobs == first.jobs
    without = [c for c in peers(3) if c.peer != first.jobs[0].peers[0]]
    anew = planned(without, jobs, previous=first, epoch=2).jobs[0]
    assert anew.clusters
    assert anew.generation[:2] == (2, 0)


def test_report_on_an_older_generation_changes_nothing() -> None:
    jobs = {JOB: spec(stages=1, clusters=1)}
    first = planned(peers(2), jobs)
    broken = status(first.jobs[0], JobPhase.BROKEN)
    second = planned(peers(2), jobs, statuses=broken, previous=first, epoch=2)
    assert second.jobs[0].generation[:2] == (2, 0)
    assert planned(peers(2), jobs, statuses=broken, previous=second, epoch=3).jobs == second.jobs


def test_broken_job_puts_its_standby_in_the_gap_and_resumes() -> None:
    jobs = {JOB: spec(stages=2, clusters=1)}
    first = planned(peers(4), jobs)
    plan = first.jobs[0]
    dead, alive = plan.peers
    standby = plan.standbys[0]
    left = [c for c in peers(4) if c.peer != dead]
    saved = (piece(0, 4, 8, dead, standby), piece(4, 8, 8, alive), piece(4, 8, 16, alive))
    broken = status(plan, JobPhase.BROKEN, *saved)
    again = planned(left, jobs, statuses=broken, previous=first, epoch=2).jobs[0]
    assert shape(again) == [[standby, alive]]
    assert (again.batches_done, again.version) == (8, 4)
    assert [(p.lo, p.hi, p.holders) for p in again.pieces] == [(0, 4, (standby,)), (4, 8, (alive,))]
    assert again.generation != plan.generation


def test_whole_cluster_goes_on_where_the_other_cannot_be_filled() -> None:
    jobs = {JOB: spec(stages=2, clusters=2)}
    first = planned(peers(4), jobs)
    plan = first.jobs[0]
    whole = [s.peer for s in plan.clusters[1].stages]
    left = [c for c in peers(4) if c.peer != plan.clusters[0].stages[0].peer]
    again = planned(left, jobs, statuses=status(plan, JobPhase.BROKEN), previous=first, epoch=2).jobs[0]
    assert shape(again) == [whole]
    assert again.reason == "goes on with the remaining peers: 1 of 2 clusters"
    assert again.batches_done == 0


def test_remaining_halves_form_one_cluster() -> None:
    jobs = {JOB: spec(stages=2, clusters=2)}
    first = planned(peers(4), jobs)
    plan = first.jobs[0]
    left_ids = {plan.clusters[0].stages[0].peer, plan.clusters[1].stages[0].peer}
    left = [c for c in peers(4) if c.peer in left_ids]
    again = planned(left, jobs, statuses=status(plan, JobPhase.BROKEN), previous=first, epoch=2).jobs[0]
    assert len(again.clusters) == 1
    assert set(again.peers) == left_ids


def test_new_job_does_not_start_with_fewer_clusters() -> None:
    assert planned(peers(2), {JOB: spec(stages=2, clusters=2)}).jobs[0].clusters == ()


def test_lost_state_waits_for_its_holders_instead_of_starting_anew() -> None:
    jobs = {JOB: spec(stages=2, clusters=1)}
    first = planned(peers(3), jobs)
    plan = first.jobs[0]
    dead, alive = plan.peers
    left = [c for c in peers(3) if c.peer != dead]
    broken = status(plan, JobPhase.BROKEN, piece(0, 4, 8, dead), piece(4, 8, 8, alive))
    waits = planned(left, jobs, statuses=broken, previous=first, epoch=2)
    assert waits.jobs[0].clusters == ()
    assert f"layers 0-3 of the state saved at batch 8 is missing: only {dead} hold it" in waits.jobs[0].reason
    back = planned(peers(3), jobs, statuses=broken, previous=waits, epoch=3).jobs[0]
    assert back.clusters
    assert back.batches_done == 8


def test_first_round_that_was_never_complete_starts_anew() -> None:
    jobs = {JOB: spec(stages=2, clusters=1)}
    first = planned(peers(3), jobs)
    plan = first.jobs[0]
    broken = status(plan, JobPhase.BROKEN, piece(4, 8, 4, plan.peers[1]))
    again = planned(peers(3), jobs, statuses=broken, previous=first, epoch=2).jobs[0]
    assert again.clusters
    assert again.batches_done == 0


def test_saved_progress_survives_a_wait_and_vanished_reports() -> None:
    jobs = {JOB: spec(stages=1, clusters=1)}
    first = planned(peers(1), jobs)
    broken = status(first.jobs[0], JobPhase.BROKEN, piece(0, 8, 12, "p0"))
    resumed = planned(peers(1), jobs, statuses=broken, previous=first, epoch=2)
    assert resumed.jobs[0].batches_done == 12
    lost = status(resumed.jobs[0], JobPhase.BROKEN)
    waits = planned([peer("q")], jobs, statuses=lost, previous=resumed, epoch=3)
    assert waits.jobs[0].clusters == ()
    still = planned([peer("q")], jobs, previous=waits, epoch=4)
    assert still.jobs[0].clusters == ()
    assert still.jobs[0].batches_done == 12


def test_finished_jobs_leave_the_plan() -> None:
    for phase in (JobPhase.DONE, JobPhase.CANCELLED, JobPhase.FAILED):
        assert planned(peers(1), {JOB: spec()}, statuses={JOB: JobStatus(JOB, phase)}).jobs == ()


def test_jobs_share_no_peer_and_the_earlier_one_chooses_first() -> None:
    wants_two = spec(stages=2, clusters=1)
    first, second = planned(peers(3), {JOB: wants_two, OTHER: wants_two}).jobs
    assert (first.job, second.job) == (JOB, OTHER)
    assert len(first.peers) == 2
    assert "2 of 3 online train other jobs" in second.reason
    both = planned(peers(5), {JOB: wants_two, OTHER: wants_two}).jobs
    assert len({p for job in both for p in job.peers}) == 4


def test_broken_job_chooses_before_a_new_one() -> None:
    wants_two = spec(stages=2, clusters=1)
    before = planned(peers(2), {OTHER: wants_two})
    broken = status(before.jobs[0], JobPhase.BROKEN)
    new, old = planned(
        peers(2), {JOB: wants_two, OTHER: wants_two}, statuses=broken, previous=before, epoch=2
    ).jobs
    assert new.clusters == ()
    assert set(old.peers) == {"p0", "p1"}


def test_open_jobs_leave_room_for_each_other() -> None:
    plans = planned(peers(4), {JOB: spec(), OTHER: spec()}).jobs
    assert all(plan.clusters for plan in plans)


def test_remaining_peers_stand_by_and_those_with_pieces_first() -> None:
    jobs = {JOB: spec(stages=1, clusters=1)}
    swarm = [
        peer("p0"),
        peer("p1", reliability=0.5),
        peer("p2", reliability=0.99),
        peer("p3", reliability=0.1),
    ]
    first = planned(swarm, jobs)
    assert first.jobs[0].peers == ("p0",)
    assert first.jobs[0].standbys == ("p2", "p1")
    broken = status(first.jobs[0], JobPhase.BROKEN, piece(0, 8, 4, "p0", "p3"))
    again = planned(swarm, jobs, statuses=broken, previous=first, epoch=2).jobs[0]
    assert again.standbys == ("p3", "p2")


def test_hundred_peers_are_planned_in_seconds() -> None:
    swarm = [
        peer(
            f"p{n:03d}",
            memory_mb=500 + 37 * (n * 7 % 41),
            flops=1e9 * (1 + n * 13 % 29),
            bps=1e7 * (1 + n % 9),
        )
        for n in range(100)
    ]
    planned(swarm[:7], {JOB: spec(4)})  # the search is compiled once on a machine
    started = time.process_time()
    job = planned(swarm, {JOB: spec(40, param_mb=20)}).jobs[0]
    assert job.clusters
    assert time.process_time() - started < 20
