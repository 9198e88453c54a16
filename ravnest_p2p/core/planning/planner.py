"""The whole plan: which jobs go on untouched, which are formed anew, which wait and for what.

Problem: every peer may have to lead, and all of them must find the same plan from the same facts; a plan must
not move what runs, and must say what a waiting job waits for. Solution: one pure function over sorted inputs.

| what is known of a job                                   | its job plan                              |
|----------------------------------------------------------|-------------------------------------------|
| done, cancelled, failed                                  | none                                      |
| runs, whichever plan formed its generation               | kept verbatim, unless clearly better      |
|                                                          | clusters are to be had (`promotion`)      |
| planned before, no report on that generation yet         | kept while all its members are online     |
| broken, or has saved rounds                              | repaired, else formed anew, else fewer    |
|                                                          | clusters, from its newest held round      |
| new                                                      | formed from the free peers                |
| none of these can be done                                | waits, with the reason                    |

Jobs that had begun choose their peers before new ones, and within both the users take turns (`fairness`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ravnest_p2p.core.canonical import canonical_json
from ravnest_p2p.core.capability import snapshot_hash
from ravnest_p2p.core.planning import waiting
from ravnest_p2p.core.planning.clusters import ClusterSearch
from ravnest_p2p.core.planning.cost import (
    Draft,
    planning_table,
    rounds_of,
    staleness_bounds,
    takes_part,
    updates_per_s,
)
from ravnest_p2p.core.planning.fairness import Turn, next_turn
from ravnest_p2p.core.planning.identity import plan_hash, tagged
from ravnest_p2p.core.planning.promotion import LEADERS_GAIN, better_clusters, old_enough
from ravnest_p2p.core.planning.repair import repaired
from ravnest_p2p.core.planning.resume import ever_saved, resume_point
from ravnest_p2p.core.planning.rings import rings_of
from ravnest_p2p.core.planning.turnout import fingerprints
from ravnest_p2p.core.planning.yardstick import simple_rate
from ravnest_p2p.core.types import (
    Capability,
    ClusterPlan,
    Fence,
    Generation,
    JobId,
    JobPhase,
    JobPlan,
    JobSpec,
    JobStatus,
    PeerId,
    Piece,
    Plan,
    StageAssignment,
)

STANDBYS_PER_JOB = 2

_OVER = (JobPhase.DONE, JobPhase.CANCELLED, JobPhase.FAILED)
_NO_GENERATION = Generation(0, 0, "")


def make_plan(
    *,
    swarm: str,
    fence: Fence,
    leader: PeerId,
    seed: int,
    capabilities: Sequence[Capability],
    jobs: Mapping[JobId, JobSpec],
    statuses: Mapping[JobId, JobStatus],
    previous: Plan | None,
    running: Mapping[JobId, JobPlan] | None = None,
    owners: Mapping[JobId, PeerId] | None = None,
    elders: Callable[[Generation], Collection[PeerId]] | None = None,
    search: bool = True,
) -> Plan:
    """The plan that a leader publishes at `fence`; the same for the same facts on every peer.

    Args:
        capabilities: valid ones of the live peers, in any order.
        jobs: in order of submission.
        statuses: what is known of them; a job without one has not been heard of yet.
        previous: the plan that was obeyed last.
        running: its jobs as they really run, see `core.consent.what_runs`; as it planned them if None.
        owners: who submitted each job, as far as that is known.
        elders: peers that are no strangers to a generation; to these alone it may move. None if to nobody.
        search: whether the compiled search may be used; else plans follow simple rules.
    """
    online = _online(capabilities)
    planned = {job.job: job for job in previous.jobs} if previous is not None else {}
    old = running if running is not None else planned
    asked = {job: _Asked(spec, statuses.get(job), old.get(job)) for job, spec in jobs.items()}
    open_jobs = {job: it for job, it in asked.items() if it.phase not in _OVER}
    plans = _kept(open_jobs, online)
    searched = seed if search else None
    free = dict(online)
    _take(free, plans.values())
    waiting = {job: it.started for job, it in open_jobs.items() if job not in plans}
    formed: list[JobId] = []
    while waiting:
        holding = {job: len(plan.peers) for job, plan in plans.items()}
        turn = next_turn(waiting, owners or {}, holding, len(free))
        plans[turn.job] = _formed(turn, open_jobs[turn.job], free, online, searched)
        _take(free, [plans[turn.job]])
        del waiting[turn.job]
        formed.append(turn.job)
    if elders is not None and all(plan.clusters for plan in plans.values()):
        for job, plan in _moved(open_jobs, plans, free, online, elders, fence, searched).items():
            free.update((peer, online[peer]) for peer in plans[job].peers)
            plans[job] = plan
            _take(free, [plan])
            formed.append(job)
    for job in formed:
        plan = plans[job]
        if plan.clusters:
            willing = _willing(open_jobs[job].spec, free)
            plan = replace(plan, standbys=tuple(_spares(open_jobs[job], willing)[:STANDBYS_PER_JOB]))
            for peer in plan.standbys:
                del free[peer]
        plans[job] = tagged(plan, fence)
    return Plan(
        swarm=swarm,
        fence=fence,
        leader=leader,
        seed=seed,
        snapshot_hash=snapshot_hash(online.values()),
        previous_hash=plan_hash(previous),
        jobs=tuple(plans[job] for job in open_jobs),
        idle=fingerprints([peer for peer, capability in free.items() if capability.memory_bytes]),
    )


@dataclass(frozen=True, slots=True)
class _Asked:
    """One job with all that is known of it."""

    spec: JobSpec
    status: JobStatus | None
    old: JobPlan | None

    @property
    def phase(self) -> JobPhase:
        return JobPhase.WAITING if self.status is None else self.status.phase

    @property
    def memory_scale(self) -> float:
        return 1.0 if self.status is None else self.status.memory_scale

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Saved pieces that anybody reported, and those that the previous plan resumed from."""
        reported = () if self.status is None else self.status.pieces
        total = self.spec.total_batches
        return tuple(p for p in (*reported, *self.old_pieces) if p.batches_done <= total)

    @property
    def old_pieces(self) -> tuple[Piece, ...]:
        return () if self.old is None else self.old.pieces

    @property
    def batches_before(self) -> int:
        """Batches that were saved for certain before the last generation; never to be trained again."""
        return 0 if self.old is None else self.old.batches_done

    @property
    def started(self) -> bool:
        generation = None if self.status is None else self.status.generation
        return generation is not None or bool(self.pieces) or self.batches_before > 0

    def keeps(self, online: Mapping[PeerId, Capability]) -> bool:
        """Whether the previous job plan stays as it is."""
        if self.old is None or not self.old.clusters:
            return False
        generation = None if self.status is None else self.status.generation
        if generation == self.old.generation:
            return self.phase is not JobPhase.BROKEN
        unheard = generation is None or generation[:2] < self.old.generation[:2]
        return unheard and all(peer in online for peer in self.old.peers)


def _kept(jobs: Mapping[JobId, _Asked], online: Mapping[PeerId, Capability]) -> dict[JobId, JobPlan]:
    """Job plans that stay, those that were heard of first: after a partition two may name the same peer."""
    staying = [it for it in jobs.values() if it.old is not None and it.keeps(online)]
    staying.sort(key=lambda it: it.status is None or it.status.generation is None)
    kept: dict[JobId, JobPlan] = {}
    taken: set[PeerId] = set()
    for it in staying:
        if it.old is not None and taken.isdisjoint(it.old.peers):
            kept[it.old.job] = it.old
            taken.update(it.old.peers)
    return kept


def _online(capabilities: Iterable[Capability]) -> dict[PeerId, Capability]:
    """Peers that can be planned with, by id, in order of id."""
    ordered = sorted(capabilities, key=lambda c: (c.peer, canonical_json(c)))
    return {c.peer: c for c in ordered if c.online}


def _take(free: dict[PeerId, Capability], plans: Iterable[JobPlan]) -> None:
    for plan in plans:
        for peer in plan.peers:
            free.pop(peer, None)


def _willing(spec: JobSpec, peers: Mapping[PeerId, Capability]) -> dict[PeerId, Capability]:
    return {peer: capability for peer, capability in peers.items() if takes_part(spec, capability)}


def _spares(it: _Asked, free: Mapping[PeerId, Capability]) -> list[PeerId]:
    """Free peers for this job's standbys: those that know its pieces first, then the most reliable ones."""
    known = {holder for piece in it.pieces for holder in piece.holders}
    return sorted(free, key=lambda peer: (peer not in known, -free[peer].reliability, peer))


def _formed(
    turn: Turn,
    it: _Asked,
    free: Mapping[PeerId, Capability],
    online: Mapping[PeerId, Capability],
    seed: int | None,
) -> JobPlan:
    """The job's clusters from the free peers, or why it waits; without standbys and tag."""
    spec, job = it.spec, turn.job
    unfit = waiting.malformed(spec)
    if unfit:
        return JobPlan(job, _NO_GENERATION, (), batches_done=it.batches_before, reason=unfit)
    saved = resume_point(it.pieces, online, len(spec.layers), not_before=it.batches_before)
    waits = JobPlan(job, _NO_GENERATION, (), batches_done=it.batches_before if saved is None else saved[0])
    if saved is None and (it.batches_before > 0 or ever_saved(it.pieces, len(spec.layers))):
        return replace(waits, reason=waiting.for_pieces(spec, it.pieces, online))
    drafts = _clusters(it, _willing(spec, free), turn.most_peers, seed)
    if not drafts:
        return replace(waits, reason=waiting.for_peers(spec, free, online, it.memory_scale))
    return _job_plan(job, it, drafts, (0, 0, ()) if saved is None else saved, seed)


def _moved(
    jobs: Mapping[JobId, _Asked],
    plans: Mapping[JobId, JobPlan],
    free: Mapping[PeerId, Capability],
    online: Mapping[PeerId, Capability],
    elders: Callable[[Generation], Collection[PeerId]],
    fence: Fence,
    seed: int | None,
) -> dict[JobId, JobPlan]:
    """The first job that runs and gains clearly by moving, with its new plan: one at a time."""
    share = len(online) // max(1, len(plans))
    for job, plan in plans.items():
        it = jobs[job]
        if plan != it.old or it.phase is not JobPhase.RUNNING or not old_enough(plan, fence):
            continue
        saved = resume_point(it.pieces, online, len(it.spec.layers), not_before=it.batches_before)
        members = {peer: online[peer] for peer in plan.peers if peer in online}
        known = set(elders(plan.generation))
        newcomers = {p: offer for p, offer in _willing(it.spec, free).items() if p in known}
        if saved is None or not newcomers:
            continue
        drafts = better_clusters(
            it.spec,
            plan,
            members | newcomers,
            batches_done=saved[0],
            most_peers=max(len(plan.peers), share),
            memory_scale=it.memory_scale,
            seed=seed,
        )
        if drafts:
            return {job: _job_plan(job, it, drafts, saved, seed)}
    return {}


def _job_plan(
    job: JobId,
    it: _Asked,
    drafts: Sequence[Draft],
    saved: tuple[int, int, tuple[Piece, ...]],
    seed: int | None,
) -> JobPlan:
    """Without standbys and tag.

    Args:
        saved: batches done, version and pieces where it begins.
    """
    batches_done, version, pieces = saved
    rounds = rounds_of(it.spec, planning_table(it.spec), drafts)
    shares = zip(drafts, rounds.kappas, rounds.overlaps(it.spec.overlap), strict=True)
    order, columns = rings_of(it.spec, drafts, seed)
    return JobPlan(
        job=job,
        generation=_NO_GENERATION,
        clusters=tuple(_cluster_plan(it, *share) for share in shares),
        batches_done=batches_done,
        version=version,
        pieces=pieces,
        reason=waiting.with_fewer(it.spec, len(drafts)),
        ring_order=order,
        ring_columns=columns,
    )


def _clusters(
    it: _Asked, free: Mapping[PeerId, Capability], most_peers: int, seed: int | None
) -> tuple[Draft, ...]:
    """Repaired where that is not clearly worse than anew; else formed anew; else fewer clusters if the job
    had started; else empty."""
    spec = it.spec
    mended = repaired(spec, it.old, free, it.memory_scale) if it.old is not None else ()
    before = len(it.old.clusters) if it.old is not None else 0
    if mended and len(mended) == (spec.clusters or before):
        own = {peer.peer: peer for draft in mended for peer in draft.peers}
        others = [offer for peer, offer in free.items() if peer not in own]
        lengths = [len(draft.peers) for draft in mended]
        anew = simple_rate(spec, lengths, own.values(), others, it.memory_scale)
        if anew <= LEADERS_GAIN * updates_per_s(spec, planning_table(spec), mended):
            return mended
    search = ClusterSearch(spec, list(free.values()), it.memory_scale, seed)
    formation = search.best(most_peers=most_peers) or search.best()
    if formation is not None:
        return formation.clusters
    if mended:
        return mended
    if it.started:
        for count in range(spec.clusters - 1, 0, -1):
            formation = search.best(clusters=count)
            if formation is not None:
                return formation.clusters
    return ()


def _cluster_plan(it: _Asked, draft: Draft, updates_per_round: int, overlap: int) -> ClusterPlan:
    bounds = staleness_bounds(it.spec, planning_table(it.spec, it.memory_scale), draft)
    stages = tuple(
        StageAssignment(peer.peer, lo, hi, tau, again)
        for peer, (lo, hi), tau, again in zip(draft.peers, draft.ranges, bounds, draft.recompute, strict=True)
    )
    return ClusterPlan(stages, updates_per_round, overlap)
