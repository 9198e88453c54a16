"""Whether a plan may end what runs well.

Problem: whoever holds a ticket may publish a plan, also one that takes running jobs from their peers: a
leader that knows too little, or a thief. To refuse such plans for ever would be wrong too: after a partition
each side trains the job in a healthy generation of its own, and one of them has to yield. Solution: a
generation lives while a member works in it and no member has given it up, whoever else says what. Everybody,
member or not, doubts a plan that moves one which lives, unless it moves the job to a higher generation that
has effect and whose members are no strangers. Leaders keep what runs by the same rule.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from .types import Generation, JobId, JobPhase, JobPlan, PeerId, Plan

Said = tuple[Generation | None, JobPhase]
"""What a peer obeys in a job and how that goes, by its own words."""

NEWEST = 4
"""Generations of one job that are looked at: a thief may name any number."""

_AT_WORK = (JobPhase.WAITING, JobPhase.RUNNING)
_ENDED_BADLY = (JobPhase.BROKEN, JobPhase.FAILED)


class Generations:
    """Every generation that some known plan names: from it, who obeys none yet learns what may run."""

    def __init__(self) -> None:
        self._by_job: dict[JobId, dict[Generation, JobPlan]] = {}

    def add(self, plan: Plan) -> None:
        for job in plan.jobs:
            if job.clusters:
                self._by_job.setdefault(job.job, {})[job.generation] = job

    def ended_by(self, plan: Plan, over: Collection[JobId] = ()) -> set[JobId]:
        """Jobs of which the plan does not keep every generation.

        Args:
            over: jobs that ended, in whatever way; to leave them out moves nobody.
        """
        kept = {job.job: job.generation for job in plan.jobs}
        return {
            job
            for job, plans in self._by_job.items()
            if job not in over and (len(plans) > 1 or kept.get(job) not in plans)
        }

    def newest(self, job: JobId) -> list[JobPlan]:
        """The newest few, the highest first."""
        plans = self._by_job.get(job, {})
        return [plans[generation] for generation in sorted(plans, reverse=True)[:NEWEST]]


def moved_jobs(plan: Plan, previous: Plan | None, over: Collection[JobId]) -> dict[JobId, JobPlan]:
    """Jobs with a generation in the plan obeyed that this plan ends."""
    kept = {job.job: job.generation for job in plan.jobs}
    before = previous.jobs if previous is not None else ()
    return {
        job.job: job
        for job in before
        if job.clusters and job.generation != kept.get(job.job) and job.job not in over
    }


def lives(generation: Generation, said: Iterable[Said], forming: bool = False) -> bool:
    """Whether the generation may still run, by its members' own words: one works in it, none has given it up.

    Silence says nothing: the co-members of a dead peer notice before anybody else, and say so. A leader gives
    what is forming its time; nobody else does, or the few whom a thief deceives would hold on to each other.

    Args:
        said: by each member that answers.
        forming: a member without a part has not taken it up yet, rather than given it up.
    """
    at_work = False
    for obeyed, phase in said:
        if obeyed == generation and phase not in _ENDED_BADLY:
            at_work = at_work or phase in _AT_WORK
        elif obeyed is not None or (not forming and phase is not JobPhase.DONE):
            return False
    return at_work


def has_effect(generation: Generation, said: Collection[Said], asked: int) -> bool:
    """Whether all members that were asked work in the generation, by their own words."""
    at_work = [obeyed for obeyed, phase in said if obeyed == generation and phase in _AT_WORK]
    return len(at_work) == asked > 0


def successor(job: JobPlan, candidates: Iterable[JobPlan], elders: Collection[PeerId]) -> JobPlan | None:
    """What a living generation has to yield to if that has effect: the highest of the same job above it.

    After a partition the same plans lie before everybody, so all come to the same one.

    Args:
        candidates: from whatever plans were published.
        elders: peers known since before the job's generation: identities cost nothing, so strangers alone
            cannot take a job over.
    """
    higher = [
        other
        for other in candidates
        if other.job == job.job
        and other.generation > job.generation
        and other.clusters
        and all(peer in elders for peer in other.peers)
    ]
    return max(higher, key=lambda other: other.generation, default=None)


def what_runs(
    previous: Plan | None,
    claimed: Iterable[JobPlan],
    said: Mapping[JobId, Mapping[PeerId, Said]],
    elders: Callable[[Generation], Collection[PeerId]],
) -> dict[JobId, JobPlan]:
    """The previous plan's jobs as they really run, whichever plan formed them: what a leader plans on from.

    Only what the previous plan formed is given time to form: an other plan's half-formed clusters, a thief's
    above all, would break one after the other, each for the price of a new plan.

    Args:
        claimed: what peers say that they take part in.
        said: by each peer that answers, of each job that it knows.
        elders: peers known since before a generation.
    """
    found = {job.job: job for job in previous.jobs} if previous is not None else {}
    by_job: dict[JobId, dict[Generation, JobPlan]] = {}
    for job in claimed:
        by_job.setdefault(job.job, {})[job.generation] = job
    for name, plans in by_job.items():
        words = said.get(name, {})
        before = found.get(name)
        effective = [
            job
            for job in plans.values()
            if has_effect(job.generation, of_members(job, words), len(job.peers))
        ]
        if before is not None and lives(before.generation, of_members(before, words), forming=True):
            found[name] = successor(before, effective, elders(before.generation)) or before
            continue
        running = effective or [
            job for job in plans.values() if lives(job.generation, of_members(job, words))
        ]
        if running:
            found[name] = max(running, key=lambda job: job.generation)
    return found


def of_members(job: JobPlan, words: Mapping[PeerId, Said]) -> list[Said]:
    """What those members say of the job that answer."""
    return [words[peer] for peer in job.peers if peer in words]
