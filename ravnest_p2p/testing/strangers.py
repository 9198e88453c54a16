"""Strangers who publish plans of their own, each wrong in a way of its own.

| who         | ticket         | plan                                                                       |
|-------------|----------------|----------------------------------------------------------------------------|
| usurper     | none           | sound                                                                      |
| vandal      | the lowest     | names a job twice                                                          |
| poacher     | the next       | sound, but ends all that runs                                              |
| equivocator | the next       | sound and harmless, but two for one fence, each shown to half of the peers |
| inventor    | the next       | keeps what runs, and forms clusters of peers that nobody knows             |
| miser       | the next       | keeps what runs, forms one cluster, and leaves everybody else out          |

Each does it again every few seconds, with the fence after the highest that anybody obeys.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from random import Random

from ravnest_p2p.core.types import Fence, Generation, JobId, JobPlan, PeerId, Plan

from .planner import plan_pairs
from .swarm import PUSHED_TO, SwarmPeer
from .world import Published, World

USURPER, VANDAL, POACHER = PeerId("usurper"), PeerId("vandal"), PeerId("poacher")
EQUIVOCATOR, INVENTOR, MISER = PeerId("equivocator"), PeerId("inventor"), PeerId("miser")

STRANGERS = (USURPER, VANDAL, POACHER, EQUIVOCATOR, INVENTOR, MISER)

TICKETS = {name: value for value, name in enumerate((VANDAL, POACHER, EQUIVOCATOR, INVENTOR, MISER))}
"""Lower than any that is drawn."""

INVENTED = 4
"""Peers that are not there."""


class Strangers:
    """Those of one run.

    Args:
        peers: of the swarm, through whom they reach the directory.
    """

    def __init__(self, world: World, peers: Sequence[SwarmPeer], random: Random) -> None:
        self._world = world
        self._peers = peers
        self._random = random
        self._deeds: dict[PeerId, Callable[[Fence], None]] = {
            USURPER: lambda fence: self._publish(self._plan(USURPER, fence, ())),
            VANDAL: self._vandalise,
            POACHER: self._poach,
            EQUIVOCATOR: self._equivocate,
            INVENTOR: self._invent,
            MISER: self._be_stingy,
        }

    def let_in(self, names: Collection[PeerId], after_s: float) -> None:
        """Let those of these names begin."""
        for name in STRANGERS:
            if name in names:
                self._world.clock.after(after_s, self._go_on, name)

    def _go_on(self, name: PeerId) -> None:
        fence = self._next_fence()
        if name in TICKETS:
            self._show_ticket(name, fence.epoch)
        self._deeds[name](fence)
        self._world.clock.after(2 + 4 * self._random.random(), self._go_on, name)

    def _vandalise(self, fence: Fence) -> None:
        job = JobPlan(JobId("job-0"), Generation(*fence, f"of-{VANDAL}"), ())
        self._publish(self._plan(VANDAL, fence, (job, job)))

    def _poach(self, fence: Fence) -> None:
        """It has no jobs, or all anew."""
        anew = self._pairs(POACHER, fence, [peer.name for peer in self._peers])
        self._publish(self._plan(POACHER, fence, self._random.choice(((), anew))))

    def _equivocate(self, fence: Fence) -> None:
        """The same jobs as before, and once without those that nobody works in."""
        jobs = self._obeyed_jobs()
        works = {peer.part_in(job.job)[0] for job in jobs for peer in self._peers if peer.alive}
        at_work = tuple(job for job in jobs if job.generation in works)
        everybody = list(self._peers)
        self._random.shuffle(everybody)
        half = len(everybody) // 2
        self._publish(self._plan(EQUIVOCATOR, fence, jobs), everybody[:half])
        other = at_work if at_work != jobs else jobs[:-1]
        self._publish(self._plan(EQUIVOCATOR, fence, other), everybody[half:])

    def _invent(self, fence: Fence) -> None:
        invented = [PeerId(f"nobody-{number}") for number in range(INVENTED)]
        self._form_beside(INVENTOR, fence, invented)

    def _be_stingy(self, fence: Fence) -> None:
        busy = {peer for job in self._obeyed_jobs() for peer in job.peers}
        self._form_beside(MISER, fence, [peer.name for peer in self._peers if peer.name not in busy][:2])

    def _form_beside(self, leader: PeerId, fence: Fence, names: Sequence[PeerId]) -> None:
        """Keep what runs, and form new jobs of these peers."""
        kept = self._obeyed_jobs()
        taken = {job.job for job in kept}
        anew = [
            replace(job, job=JobId(f"of-{leader}-{number}"))
            for number, job in enumerate(self._pairs(leader, fence, names))
        ]
        self._publish(self._plan(leader, fence, (*kept, *(job for job in anew if job.job not in taken))))

    def _pairs(self, leader: PeerId, fence: Fence, names: Sequence[PeerId]) -> tuple[JobPlan, ...]:
        return plan_pairs("", fence, leader, names, None, {}, {}).jobs

    def _obeyed_jobs(self) -> tuple[JobPlan, ...]:
        """Of the highest plan that anybody obeys."""
        plans = [peer.plan for peer in self._peers if peer.alive and peer.plan is not None]
        return max(plans, key=lambda plan: plan.fence).jobs if plans else ()

    def _next_fence(self) -> Fence:
        highest = max((p.saved.fence for p in self._peers if p.saved is not None), default=Fence(0, 0))
        epoch = int(self._world.clock.now_s // self._world.rules.epoch_s)
        return Fence(epoch, highest.term + 1 if highest.epoch == epoch else 0)

    def _plan(self, leader: PeerId, fence: Fence, jobs: tuple[JobPlan, ...]) -> Published:
        for job in jobs:
            if job.clusters and job.generation[:2] == fence:
                self._world.invariants.formed(leader, job)
        return Published(Plan(self._world.rules.swarm, fence, leader, 0, "", "", jobs))

    def _publish(self, published: Published, shown_to: Sequence[SwarmPeer] | None = None) -> None:
        """In the directory, and straight to some peers; with `shown_to` to these alone."""
        plan, world = published.plan, self._world
        through = self._random.choice(self._peers).name
        told = self._peers if shown_to is None else shown_to
        if shown_to is None:
            key, subkey = f"plan/{plan.fence.epoch}", f"{plan.fence.term}/{plan.leader}"
            world.directory.write(through, key, subkey, published, world.rules.epoch_s)
        for peer in self._random.sample(list(told), min(PUSHED_TO, len(told))):
            world.network.send(PeerId(through), peer.name, published)

    def _show_ticket(self, name: PeerId, epoch: int) -> None:
        self._world.invariants.ticket(epoch, name)
        through = self._random.choice(self._peers).name
        ttl_s = self._world.rules.epoch_s
        self._world.directory.write(through, f"tickets/{epoch}", name, TICKETS[name], ttl_s)
