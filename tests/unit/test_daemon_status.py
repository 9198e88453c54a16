"""A job's phase and figures are put together from what its peers say, whoever is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import pytest
from pydantic import ValidationError

from ravnest_p2p.cli.live import line
from ravnest_p2p.client.progress import Progress
from ravnest_p2p.core.planning.cost import memory_of
from ravnest_p2p.core.planning.cuts import LayerTable
from ravnest_p2p.core.planning.identity import tagged
from ravnest_p2p.core.planning.measured import MAX_MEMORY_SCALE
from ravnest_p2p.core.types import (
    BlobHash,
    ClusterPlan,
    Fence,
    FieldSpec,
    Generation,
    JobId,
    JobPhase,
    JobPlan,
    JobSpec,
    JobStatus,
    LayerCost,
    OptimizerSpec,
    PeerId,
    Piece,
    Plan,
    StageAssignment,
    WeightsPart,
)
from ravnest_p2p.daemon.jobbook import JobEntry
from ravnest_p2p.daemon.leader import MAX_ATTEMPTS, given_up
from ravnest_p2p.daemon.loss_curve import thinned
from ravnest_p2p.daemon.messages import Report
from ravnest_p2p.daemon.peer_messages import Overview, StageView, parse, plain
from ravnest_p2p.daemon.status import job_status
from ravnest_p2p.daemon.survey import merged_pieces, running_jobs, statuses

JOB = JobId("a" * 64)
GENERATION = Generation(5, 1, "tag")
PEERS = [PeerId(f"peer-{n}") for n in range(4)]
BLOB = BlobHash("b" * 64)
SPEC = JobSpec(
    name="job",
    program=BLOB,
    weights=(WeightsPart(0, 2, BLOB),),
    fields=(FieldSpec("x0", "input", "float32", (2,), ((BLOB, 100),)),),
    samples=100,
    layers=(LayerCost(1.0, 1, 1, 1),) * 2,
    microbatch_size=5,
    microbatches_per_update=2,
    updates_per_round=2,
    total_batches=40,
    seed=0,
    optimizer=OptimizerSpec("sgd", 0.1),
)
JOB_PLAN = JobPlan(
    JOB,
    GENERATION,
    tuple(
        ClusterPlan((StageAssignment(a, 0, 1, 1), StageAssignment(b, 1, 2, 0)), 2)
        for a, b in ((PEERS[0], PEERS[1]), (PEERS[2], PEERS[3]))
    ),
)
PLAN = Plan("swarm", Fence(5, 1), PEERS[0], 1, "", "", (JOB_PLAN,))
RUNNING = {JOB: JOB_PLAN}


def views(phase: JobPhase = JobPhase.RUNNING, **changes: object) -> dict[PeerId, StageView]:
    return {
        peer: StageView(job=JOB, generation=GENERATION, cluster=n // 2, stage=n % 2, phase=phase, **changes)
        for n, peer in enumerate(PEERS)
    }


def overviews(found: dict[PeerId, StageView]) -> dict[PeerId, Overview]:
    return {peer: Overview(stages=(view,)) for peer, view in found.items()}


def planner_phase(
    found: dict[PeerId, StageView], running: Mapping[JobId, JobPlan] = MappingProxyType(RUNNING)
) -> JobPhase:
    return statuses({JOB: SPEC}, overviews(found), running)[JOB].phase


def test_running_while_every_member_answers_and_none_is_broken() -> None:
    assert planner_phase(views()) is JobPhase.RUNNING
    assert planner_phase(views(JobPhase.WAITING)) is JobPhase.RUNNING, "workers are starting"


def test_a_generation_is_over_for_the_planner_when_no_member_works_in_it() -> None:
    found = views()
    del found[PEERS[3]]
    assert planner_phase(found) is JobPhase.RUNNING, "its co-members know best whether it is gone"
    stopped = {PEERS[0]: StageView(job=JOB, phase=JobPhase.WAITING)}
    assert planner_phase(stopped) is JobPhase.BROKEN
    stranger = PeerId("stranger")
    claims = stopped | {stranger: StageView(job=JOB, generation=GENERATION, phase=JobPhase.RUNNING)}
    assert planner_phase(claims) is JobPhase.BROKEN, "it is no member"


def test_one_member_that_reports_it_broken_is_enough() -> None:
    found = views()
    found[PEERS[1]] = found[PEERS[1]].model_copy(update={"phase": JobPhase.BROKEN, "reason": "gone"})
    status = statuses({JOB: SPEC}, overviews(found), RUNNING)[JOB]
    assert (status.phase, status.reason) == (JobPhase.BROKEN, "gone")


def test_one_member_whose_training_diverged_ends_the_job() -> None:
    found = views()
    found[PEERS[1]] = found[PEERS[1]].model_copy(update={"phase": JobPhase.FAILED, "reason": "diverged"})
    found[PEERS[0]] = found[PEERS[0]].model_copy(update={"phase": JobPhase.BROKEN, "reason": "heard of it"})
    status = statuses({JOB: SPEC}, overviews(found), RUNNING)[JOB]
    assert (status.phase, status.reason) == (JobPhase.FAILED, "diverged")
    shown = job_status(JOB, JobEntry(spec=SPEC), PLAN, overviews(found), PEERS)
    assert (shown["phase"], shown["reason"]) == ("failed", "diverged")


def test_what_stages_really_took_scales_the_plan_after() -> None:
    need = memory_of(SPEC, LayerTable(SPEC.layers), 0, 2, 0, 1, 1, recompute=False).needed

    def scale(found: dict[PeerId, StageView], running: Mapping[JobId, JobPlan] = RUNNING) -> float:
        return statuses({JOB: SPEC}, overviews(found), running)[JOB].memory_scale

    def took(share: float) -> Report:
        return Report(lo=0, hi=1, staleness_bound=1, peak_memory_bytes=int(share * need))

    assert scale(views()) == scale(views(report=took(0.9))) == 1.0
    assert scale(views(report=took(1.25))) == pytest.approx(1.25, abs=0.002)
    one = {**views(report=took(0.9)), PEERS[2]: views(report=took(1.5))[PEERS[2]]}
    assert scale(one) == pytest.approx(1.5, abs=0.002)
    left = {PEERS[0]: StageView(job=JOB, phase=JobPhase.WAITING, report=took(1.5))}
    assert scale(left, {}) == pytest.approx(1.5, abs=0.002), "its generation is over, its figures count"
    assert scale(views(report=took(1e9))) == MAX_MEMORY_SCALE
    nowhere = took(1.5).model_copy(update={"hi": 9})
    assert scale(views(report=nowhere)) == 1.0


def test_a_job_without_a_plan_waits() -> None:
    assert planner_phase({}, {}) is JobPhase.WAITING


def test_done_needs_the_final_round_in_full_and_nobody_at_work() -> None:
    last = tuple(Piece(s, s + 1, 40, 20, BlobHash(f"{s:064x}"), ()) for s in range(2))
    all_done = views(JobPhase.DONE, pieces=last)
    assert planner_phase(all_done) is JobPhase.DONE
    half = views(JobPhase.DONE, pieces=last[:1])
    assert planner_phase(half) is not JobPhase.DONE, "a layer of the final round is held by nobody"
    early = views(JobPhase.DONE, pieces=tuple(replace(p, batches_done=38) for p in last))
    assert planner_phase(early) is not JobPhase.DONE, "not the final round"
    at_work = views(JobPhase.DONE, pieces=last)
    at_work[PEERS[2]] = at_work[PEERS[2]].model_copy(update={"phase": JobPhase.RUNNING})
    assert planner_phase(at_work) is JobPhase.RUNNING, "one member still averages"


def test_a_job_that_only_breaks_is_given_up() -> None:
    broken = JobStatus(JOB, JobPhase.BROKEN, GENERATION, "loss is NaN")
    stuck = [(Generation(5, term, "tag"), 8) for term in range(MAX_ATTEMPTS)]
    assert given_up(broken, stuck[1:]) == broken, "not yet"
    assert given_up(broken, [(GENERATION, 0), *stuck[1:]]) == broken, "one of them saved a round"
    progressed = replace(broken, pieces=(Piece(0, 1, 9, 5, BLOB, (PEERS[0],)),))
    assert given_up(progressed, stuck) == progressed, "the last one saved a round before it broke"
    failed = given_up(broken, stuck)
    assert failed.phase is JobPhase.FAILED
    assert "loss is NaN" in failed.reason
    running = replace(broken, phase=JobPhase.RUNNING)
    assert given_up(running, stuck) == running


def formed(fence: Fence) -> JobPlan:
    return tagged(JOB_PLAN, fence)


def test_a_leader_plans_on_from_what_really_runs() -> None:
    """After a restart or a partition the plan obeyed here is not the one that the members obey."""
    newer = formed(Fence(5, 2))
    found = {
        peer: StageView(job=JOB, generation=newer.generation, plan=newer, phase=JobPhase.RUNNING)
        for peer in PEERS
    }
    assert running_jobs(PLAN, overviews(found), lambda _: set(PEERS)) == {JOB: newer}
    assert running_jobs(None, overviews(found), lambda _: set(PEERS)) == {JOB: newer}


def test_what_members_claim_counts_only_where_it_can_be_true() -> None:
    newer = formed(Fence(5, 2))
    wrong_tag = replace(newer, generation=newer.generation._replace(tag="00000000"))
    not_a_member = {PeerId("x"): StageView(job=JOB, generation=newer.generation, plan=newer)}
    other_job = StageView(job=JobId("c" * 64), generation=newer.generation, plan=newer)
    for found in (
        not_a_member,
        {PEERS[0]: StageView(job=JOB, generation=wrong_tag.generation, plan=wrong_tag)},
        {PEERS[0]: StageView(job=JOB, generation=GENERATION, plan=newer)},
        {PEERS[0]: other_job},
    ):
        assert running_jobs(PLAN, overviews(found), lambda _: set(PEERS)) == {JOB: JOB_PLAN}


def test_holders_of_one_piece_are_merged() -> None:
    same = Piece(0, 1, 10, 5, BLOB, (PeerId("claimed"),))
    found = {peer: StageView(job=JOB, pieces=(same,)) for peer in PEERS[:3]}
    (merged,) = merged_pieces(found)
    assert merged.holders == tuple(PEERS[:3]), "a peer speaks for itself only"


def test_done_does_not_turn_into_waiting_while_members_leave() -> None:
    last = tuple(Piece(s, s + 1, 40, 20, BlobHash(f"{s:064x}"), ()) for s in range(2))

    def phase(pieces: tuple[Piece, ...]) -> str:
        found = overviews(views(JobPhase.DONE, pieces=pieces))
        return str(job_status(JOB, JobEntry(spec=SPEC), None, found, PEERS)["phase"])

    assert phase(last) == "done"
    assert phase(last[:1]) == "waiting"


def test_figures_add_up() -> None:
    report = Report(samples=100, training_s=4.0, bytes_sent=10, updates=10, version=12)
    status = job_status(
        JOB, JobEntry(spec=SPEC), PLAN, overviews(views(report=report, loss=0.5)), [*PEERS, PeerId("spare")]
    )
    assert status["phase"] == "running"
    assert status["generation"] == "5.1.tag"
    assert status["samples_per_s"] == pytest.approx(2 * 100 / 4.0), "two clusters"
    assert status["bytes_sent"] == 40
    assert status["loss"] == 0.5
    assert status["spares"] == ["spare"]
    assert [len(c["stages"]) for c in status["clusters"]] == [2, 2]
    assert status["clusters"][0]["stages"][0]["staleness_bound"] == 1


def test_what_is_left_out_counts_once_in_each_cluster() -> None:
    found = views()
    told = [(2, 0, ""), (3, 1, "x"), (1, 0, ""), (1, 0, "")]
    for peer, (skipped, updates, why) in zip(PEERS, told, strict=True):
        report = Report(skipped=skipped, skipped_updates=updates, skipped_why=why)
        found[peer] = found[peer].model_copy(update={"report": report})
    status = job_status(JOB, JobEntry(spec=SPEC), PLAN, overviews(found), PEERS)
    assert (status["skipped"], status["skipped_why"]) == (4, "x")
    assert [s["skipped"] for c in status["clusters"] for s in c["stages"]] == [2, 3, 1, 1]
    progress = Progress.of(status)
    assert progress.clusters[0].stages[1].skipped_updates == 1
    assert "4 micro-batches and 1 updates of stages left out as not finite; the newest: x" in line(progress)


def test_what_was_in_flight_ahead_of_each_micro_batch_is_shown() -> None:
    found = views(report=Report(ahead=(1, 2, 3), crossed=4))
    stage = job_status(JOB, JobEntry(spec=SPEC), PLAN, overviews(found), PEERS)["clusters"][0]["stages"][0]
    assert (stage["ahead"], stage["crossed"]) == ([1, 2, 3], 4)


def test_updates_of_a_round_and_beside_it_are_shown() -> None:
    late = replace(JOB_PLAN.clusters[1], overlap=1)
    plan = replace(PLAN, jobs=(replace(JOB_PLAN, clusters=(JOB_PLAN.clusters[0], late)),))
    shown = job_status(JOB, JobEntry(spec=SPEC), plan, overviews(views()), PEERS)["clusters"]
    assert [(c["updates_per_round"], c["overlap"]) for c in shown] == [(2, 0), (2, 1)]


def test_a_window_is_shown_with_what_was_measured_and_both_bounds() -> None:
    def stage(report: Report) -> dict[str, object]:
        found = job_status(JOB, JobEntry(spec=SPEC), PLAN, overviews(views(report=report)), PEERS)
        shown: dict[str, object] = found["clusters"][0]["stages"][0]
        return {key: shown[key] for key in ("window", "window_wanted", "staleness_limit", "staleness_bound")}

    known = stage(Report(window=2, window_wanted=4.5, staleness_limit=1, staleness_bound=7))
    assert known == {"window": 2, "window_wanted": 4.5, "staleness_limit": 1, "staleness_bound": 1}
    assert stage(Report())["window"] is None, "it has said nothing yet"
    for wrong in ({"window_wanted": float("nan")}, {"window_wanted": 1e9}, {"window": -1}):
        with pytest.raises(ValidationError):
            Report(**wrong)


def test_of_windows_that_are_too_narrow_the_one_that_costs_most_is_advised_on() -> None:
    found = views()
    told = {"staleness_limit": 9, "window": 2, "version": 40}
    reports = [Report(**told, window_needed=4.0), Report(**told, window_needed=1e6), Report(), Report()]
    for peer, report in zip(PEERS, reports, strict=True):
        found[peer] = found[peer].model_copy(update={"report": report})
    found[PEERS[2]] = found[PEERS[2]].model_copy(update={"generation": Generation(1, 1, "old")})
    status = job_status(JOB, JobEntry(spec=SPEC), PLAN, overviews(found), PEERS)
    (line,) = status["advice"]
    assert line.startswith("cluster 0, stage 1 may have 1 micro-batch in flight and needs 1e+06")
    assert [s["window_needed"] for c in status["clusters"] for s in c["stages"]] == [4.0, 1e6, None, None]
    assert Progress.of(status).advice == (line,)
    found[PEERS[1]] = found[PEERS[1]].model_copy(update={"report": Report(way_s=2.0, rtt_s=0.1, pace_s=1.0)})
    (line,) = job_status(JOB, JobEntry(spec=SPEC), PLAN, overviews(found), PEERS)["advice"]
    assert "stage 0 may have 2 micro-batches in flight and needs 4: it idles about 50 % of the time" in line
    assert line.endswith("compression of large frames"), "the link after stage 1 is as much in its way"


def test_once_windows_are_measured_a_batch_too_small_for_them_is_advised_on() -> None:
    spec = replace(SPEC, microbatches_per_update=4, staleness_bound=4)

    def said(**told: int) -> list[str]:
        found = views(report=Report(**told))
        lines: list[str] = job_status(JOB, JobEntry(spec=spec), PLAN, overviews(found), PEERS)["advice"]
        return lines

    assert said(updates=2, window=4) == [], "not measured yet"
    assert said(updates=20, window=3) == []
    lines = said(updates=20, window=4)
    assert [line.partition(",")[0] for line in lines] == ["cluster 0", "cluster 1"]
    assert "stage 0 runs 3 micro-batches ahead, more than half of m = 4" in lines[0]
    assert len(said(updates=20, window=1 << 40)) == 2


def test_samples_count_what_is_saved_not_what_is_under_way() -> None:
    found = views(pieces=(Piece(0, 2, 8, 4, BLOB, ()),), report=Report(updates=30, samples=900))
    status = job_status(JOB, JobEntry(spec=SPEC), PLAN, overviews(found), PEERS)
    assert status["batches_done"] == 8
    assert status["samples"] == 8 * 10


def test_a_waiting_job_gives_the_plans_reason() -> None:
    waiting = Plan(
        "swarm", Fence(5, 1), PEERS[0], 1, "", "", (replace(JOB_PLAN, clusters=(), reason="4 peers"),)
    )
    status = job_status(JOB, JobEntry(spec=SPEC), waiting, {}, PEERS)
    assert (status["phase"], status["reason"]) == ("waiting", "4 peers")


def test_a_job_that_is_over_keeps_its_figures() -> None:
    report = Report(samples=100, training_s=4.0, bytes_sent=10)
    found = {
        p: v.model_copy(update={"generation": None}) for p, v in views(JobPhase.DONE, report=report).items()
    }
    status = job_status(JOB, JobEntry(spec=SPEC, outcome=JobPhase.DONE), None, overviews(found), PEERS)
    assert status["phase"] == "done"
    assert status["samples_per_s"] == pytest.approx(50.0)
    assert status["elapsed_s"] == 4.0


def test_an_overview_survives_the_wire() -> None:
    overview = Overview(stages=tuple(views(report=Report(losses=((1, 0.5),))).values()))
    assert parse(Overview, plain(overview)) == overview


def test_curves_are_thinned_evenly_and_keep_the_newest_point() -> None:
    curve = {batch: float(batch) for batch in range(1001)}
    points = thinned(curve, 100)
    assert len(points) <= 100
    assert points[-1] == (1000, 1000.0)


def test_a_long_curve_of_several_clusters_is_shown_from_its_beginning() -> None:
    found = views()
    for n, peer in enumerate(PEERS):
        curve = tuple((4 * i + n, float(i)) for i in range(600))
        found[peer] = found[peer].model_copy(update={"losses": curve})
    losses = job_status(JOB, JobEntry(spec=SPEC), PLAN, overviews(found), PEERS)["losses"]
    assert 700 < len(losses) <= 1000
    assert losses[0][0] < 4
    assert losses[-1] == [2399, 599.0]
    assert thinned({}, 100) == ()
