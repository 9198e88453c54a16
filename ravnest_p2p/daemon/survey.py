"""Asking the swarm how it goes: the facts that a leader plans with and that a gateway shows.

Records in the directory say who offers what; whether a peer lives and what it is doing now only the peer
itself can say. A survey asks many peers at once, each with a deadline, and whoever does not answer is left
out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping

from ravnest_p2p.core.consent import Said, what_runs
from ravnest_p2p.core.errors import RemoteFault
from ravnest_p2p.core.planning.identity import generation_tag
from ravnest_p2p.core.planning.measured import MeasuredStage, memory_scale
from ravnest_p2p.core.planning.resume import resume_point
from ravnest_p2p.core.types import (
    Generation,
    JobId,
    JobPhase,
    JobPlan,
    JobSpec,
    JobStatus,
    PeerId,
    Piece,
    Plan,
)
from ravnest_p2p.daemon.peer_messages import OVERVIEW, Overview, OverviewAsked, StageView, parse, plain
from ravnest_p2p.network.rpc import Rpc

ASK_TIMEOUT_S = 2.0
ASKED_AT_ONCE = 64

_OVER = (JobPhase.DONE, JobPhase.CANCELLED, JobPhase.FAILED)


async def survey(
    rpc: Rpc, own: PeerId, own_overview: Overview, peers: Iterable[PeerId], asked: OverviewAsked
) -> dict[PeerId, Overview]:
    """Overviews of those peers that answer; our own needs no call."""
    places = asyncio.Semaphore(ASKED_AT_ONCE)

    async def ask(peer: PeerId) -> tuple[PeerId, Overview] | None:
        if peer == own:
            return peer, own_overview
        async with places:
            try:
                return peer, parse(Overview, await rpc.call(peer, OVERVIEW, plain(asked), ASK_TIMEOUT_S))
            except RemoteFault:
                return None

    answers = await asyncio.gather(*(ask(peer) for peer in dict.fromkeys(peers)))
    return dict(answer for answer in answers if answer is not None)


async def ask_outcome(rpc: Rpc, peer: PeerId, job: JobId) -> tuple[JobPhase, str] | None:
    """How the job ended and why, as far as the peer knows; None if it did not, or the peer is silent."""
    try:
        answer = parse(Overview, await rpc.call(peer, OVERVIEW, plain(OverviewAsked(job=job)), ASK_TIMEOUT_S))
    except RemoteFault:
        return None
    ended = (v for v in answer.stages if v.job == job and v.generation is None and v.phase in _OVER)
    return next(((view.phase, view.reason) for view in ended), None)


def said_of(job: JobId, overview: Overview) -> Said:
    """What a peer that answers says of its part in a job."""
    view = next((view for view in overview.stages if view.job == job), None)
    return (None, JobPhase.WAITING) if view is None else (view.generation, view.phase)


def running_jobs(
    previous: Plan | None,
    overviews: Mapping[PeerId, Overview],
    elders: Callable[[Generation], Collection[PeerId]],
) -> dict[JobId, JobPlan]:
    """The jobs as they run by the answers, whichever plan formed them (`core.consent.what_runs`)."""
    claimed = {
        view.plan.generation: view.plan
        for peer, overview in overviews.items()
        for view in overview.stages
        if view.plan is not None and _holds(view.plan, peer, view)
    }
    jobs = {view.job for overview in overviews.values() for view in overview.stages}
    said = {job: {peer: said_of(job, overview) for peer, overview in overviews.items()} for job in jobs}
    return what_runs(previous, claimed.values(), said, elders)


def _holds(plan: JobPlan, peer: PeerId, view: StageView) -> bool:
    """Whether this can be the plan of the generation in which the peer says that it takes part."""
    ours = plan.job == view.job and plan.generation == view.generation and peer in plan.peers
    return ours and plan.generation.tag == generation_tag(plan)


def statuses(
    jobs: Mapping[JobId, JobSpec], overviews: Mapping[PeerId, Overview], running: Mapping[JobId, JobPlan]
) -> dict[JobId, JobStatus]:
    """What the answers say of each job, in the planner's words.

    Args:
        running: the jobs as they run.
    """
    found: dict[JobId, dict[PeerId, StageView]] = {}
    for peer, overview in overviews.items():
        for view in overview.stages:
            found.setdefault(view.job, {})[peer] = view
    return {job: _status(job, spec, found.get(job, {}), running.get(job)) for job, spec in jobs.items()}


def _status(job: JobId, spec: JobSpec, views: Mapping[PeerId, StageView], plan: JobPlan | None) -> JobStatus:
    pieces = merged_pieces(views)
    scale = memory_scale(spec, _measured(views.values()))
    final = [piece for piece in pieces if piece.batches_done == spec.total_batches]
    members = plan.peers if plan is not None else ()
    of_members = [views[peer] for peer in members if peer in views]
    at_work = plan is not None and any(
        v.generation == plan.generation and v.phase in (JobPhase.WAITING, JobPhase.RUNNING)
        for v in of_members
    )
    if not at_work and resume_point(final, views, len(spec.layers)) is not None:
        return JobStatus(job, JobPhase.DONE, pieces=pieces)
    if plan is None or not plan.clusters:
        return JobStatus(job, JobPhase.WAITING, pieces=pieces, memory_scale=scale)
    generation, silent = plan.generation, len(members) - len(of_members)
    failed = next((v for v in of_members if v.phase is JobPhase.FAILED and v.generation == generation), None)
    if failed is not None:
        return JobStatus(job, JobPhase.FAILED, generation, failed.reason, pieces, scale)
    if silent and not at_work:
        reason = f"{silent} of its peers do not answer"
        return JobStatus(job, JobPhase.BROKEN, generation, reason, pieces, scale)
    broken = next((v for v in of_members if v.phase is JobPhase.BROKEN and v.generation == generation), None)
    if broken is not None:
        return JobStatus(job, JobPhase.BROKEN, generation, broken.reason, pieces, scale)
    obeyed: Generation | None = generation if any(v.generation == generation for v in of_members) else None
    return JobStatus(job, JobPhase.RUNNING, obeyed, pieces=pieces, memory_scale=scale)


def _measured(views: Iterable[StageView]) -> list[MeasuredStage]:
    return [
        MeasuredStage(r.lo, r.hi, r.staleness_bound, r.recompute, r.last, r.peak_memory_bytes)
        for r in (view.report for view in views)
        if r is not None
    ]


def merged_pieces(views: Mapping[PeerId, StageView]) -> tuple[Piece, ...]:
    """One entry for each saved piece, with all peers that say they hold it."""
    holders: dict[tuple[int, int, int, int, str], list[PeerId]] = {}
    for peer, view in sorted(views.items()):
        for p in view.pieces:
            holders.setdefault((p.batches_done, p.lo, p.hi, p.version, p.blob), []).append(peer)
    return tuple(
        Piece(lo, hi, batches_done, version, blob, tuple(peers))  # type: ignore[arg-type]
        for (batches_done, lo, hi, version, blob), peers in sorted(holders.items())
    )
