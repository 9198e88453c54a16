"""A simulated peer's doubts about plans: `daemon.scrutiny` and `daemon.consent` without a wire."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from ravnest_p2p.core.consent import Generations, Said, has_effect, lives, moved_jobs, successor
from ravnest_p2p.core.planning.turnout import left_out
from ravnest_p2p.core.types import JobId, JobPlan, PeerId, Plan

from .world import Published, World

JOBS_ASKED_FOR, PEERS_ASKED = 8, 8
"""As in the daemon."""

HEARD_OF_S = 5.0
"""Since when a peer has to be known to be missed."""


class SimulatedConsent:
    """Asks members of the clusters that a plan moves.

    Args:
        mate_gone: whether this peer, a member itself, has lost the other member of a cluster.
    """

    def __init__(self, world: World, name: PeerId, mate_gone: Callable[[JobPlan], bool]) -> None:
        self._world = world
        self._name = name
        self._mate_gone = mate_gone
        self._known = Generations()
        self._heard_of_s: dict[PeerId, float] = {}

    def learn(self, plan: Plan) -> None:
        """A plan was published: what it names may run."""
        self._known.add(plan)

    def doubt(self, published: Published, previous: Published | None, running: JobPlan | None) -> str:
        """Whether the plan needlessly moves a cluster that runs well, ours or another."""
        missed = self._left_out(published.plan)
        if missed:
            return f"it leaves out {missed} that live"
        moved = moved_jobs(published.plan, None if previous is None else previous.plan, ())
        strays = self._known.ended_by(published.plan) - moved.keys()
        parts = (published.by_peer.get(self._name), running)
        near = {job.job for job in parts if job is not None}
        asked = near | self._sample(moved.keys() - near) | self._sample(strays - near)
        robbed = any(self._robbed(job, moved, published) for job in asked)
        return "it moves a healthy cluster" if robbed else ""

    def _left_out(self, plan: Plan) -> int:
        """How many peers the plan leaves out, if most of some that are asked live."""
        now_s, world = self._world.clock.now_s, self._world
        alive = list(map(PeerId, world.directory.snapshot(self._name, "alive")))
        for peer in alive:
            self._heard_of_s.setdefault(peer, now_s)
        missed = left_out(plan, [peer for peer in alive if now_s - self._heard_of_s[peer] > HEARD_OF_S])
        asked = world.random.sample(missed, min(PEERS_ASKED, len(missed)))
        answers = [peer for peer in asked if world.ask(self._name, peer) is not None]
        return len(missed) if 2 * len(answers) > len(asked) else 0

    def _sample(self, jobs: Collection[JobId]) -> set[JobId]:
        return set(self._world.random.sample(sorted(jobs), min(JOBS_ASKED_FOR, len(jobs))))

    def _robbed(self, job: JobId, moved: Mapping[JobId, JobPlan], published: Published) -> bool:
        """Whether the plan ends a cluster of this job that runs: the one obeyed, or any that has effect."""
        if job in moved and self._lives(moved[job]) and not self._yields(moved[job], published):
            return True
        others = [o for o in self._known.newest(job) if o.generation not in published.generations]
        return any(self._has_effect(other) and not self._yields(other, published) for other in others)

    def _lives(self, job: JobPlan) -> bool:
        if self._name in job.peers and self._mate_gone(job):
            return False
        return lives(job.generation, self._ask_members(job))

    def _yields(self, job: JobPlan, published: Published) -> bool:
        planned = published.by_job.get(job.job)
        other = successor(job, () if planned is None else (planned,), self._world.peers)
        return other is not None and self._has_effect(other)

    def _has_effect(self, job: JobPlan) -> bool:
        return has_effect(job.generation, self._ask_members(job), len(job.peers))

    def _ask_members(self, job: JobPlan) -> list[Said]:
        answers = (self._world.ask(self._name, peer) for peer in job.peers)
        return [peer.part_in(job.job) for peer in answers if peer is not None]
