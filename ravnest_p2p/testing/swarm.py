"""A simulated peer: the product's election, membership and obedience with a small daemon around them.

Problem: the pure parts are right only together, under the order of events that a real daemon produces.
Solution: this peer reads the directory from time to time, feeds what is new to the same machines that run
in the daemon, and carries out the actions they return, on a clock that is wrong by up to some seconds. It
writes to its "disk" (`saved`, `floor`) before it acts, and a crash takes everything else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from ravnest_p2p.core.ballot import (
    Action,
    Adopt,
    Adopted,
    DrawTicket,
    Explain,
    Expose,
    MakePlan,
    PlanHeader,
    PublishTicket,
    Reconsider,
)
from ravnest_p2p.core.consent import Said, what_runs
from ravnest_p2p.core.errors import StaleGenerationError
from ravnest_p2p.core.membership import Changed, Membership, PeerState
from ravnest_p2p.core.obedience import Obedience
from ravnest_p2p.core.types import Fence, Generation, JobId, JobPhase, JobPlan, PeerId, Plan

from .consent import SimulatedConsent
from .notices import SimulatedNotices
from .planner import invented, plan_pairs, stays
from .stage import Frame, Receipt, Stage
from .world import Published, World

SUSPECT_AFTER_S = 5.0
GONE_AFTER_S = 10.0
PUSHED_TO, HANDED_ON_TO = 64, 3
"""Peers that get a plan from its leader, and from each that adopts it; as in the daemon."""
JOIN_WITHIN_S = 12.0
"""A member that does not obey the cluster's generation by then is taken for lost."""


class Ping(NamedTuple):
    answer: bool
    generation: Generation | None


class SwarmPeer:
    """One peer of the simulated swarm.

    Args:
        skew_s: how far its clock is ahead of the true time.

    Attributes:
        alive: whether it runs.
        lost: whether it never comes back after a crash.
    """

    def __init__(self, world: World, name: PeerId, skew_s: float) -> None:
        self.name = name
        self.alive = False
        self.lost = False
        self.saved: Adopted | None = None
        self.floor: Fence | None = None
        self._world = world
        self._skew_s = skew_s
        self._life = 0

    @property
    def now_s(self) -> float:
        """Time by this peer's clock."""
        return self._world.clock.now_s + self._skew_s

    @property
    def fence(self) -> Fence:
        """The epoch and term that it believes to be in."""
        return Fence(self.election.epoch, self.election.term)

    @property
    def plan(self) -> Plan | None:
        """The plan that it obeys, as long as it runs."""
        return None if self._plan is None else self._plan.plan

    def start(self) -> None:
        """Start, or start again with what is on the disk."""
        world = self._world
        self.saved = self.saved if "plan" in world.disk else None
        self.floor = self.floor if "worker" in world.disk else None
        self.alive = True
        self._life += 1
        self.election = world.election_class(self.name, world.rules, self.now_s, self.saved)
        self.election.expect_peers(world.peers_expected)
        self._membership = Membership(SUSPECT_AFTER_S, GONE_AFTER_S)
        self._obedience = Obedience(self.floor)
        self._plan: Published | None = None
        self._running: JobPlan | None = None
        self._given_up: JobPlan | None = None
        self._stage: Stage | None = None
        self._ticket = 0
        self._seen: dict[tuple[Fence, PeerId, str], Published] = {}
        self._consent = SimulatedConsent(world, self.name, self._mate_gone)
        self._doubted: list[Published] = []
        self._broken: set[Generation] = set()
        self._notices = SimulatedNotices(world, self.name)
        self._joined_s = 0.0
        self._awaiting = False
        self._mate_obeys = True
        world.network.attach(self.name, self._receive)
        world.tell(self.name, "starts")
        self._wake(self._life)

    def crash(self) -> None:
        """Lose everything but the disk, at once, and come back some time later."""
        self._world.tell(self.name, "crashes")
        self._stop()
        self.alive = False
        self._world.network.detach(self.name)
        self._world.directory.forget_reader(self.name)
        if not self.lost:
            self._world.clock.after(2 + 25 * self._world.random.random(), self.restart)

    def restart(self) -> None:
        """Start unless it runs."""
        if not self.alive:
            self.start()

    def _wake(self, life: int) -> None:
        if life != self._life or not self.alive:
            return
        world = self._world
        self._poll()
        self._read()
        self._watch_mate()
        self._notices.refresh(self.now_s, self.election.epoch)
        self._poll()
        if self.alive:
            next_s = world.clock.now_s + 1.5 + world.random.random()
            wake_s = self.election.wake_s - self._skew_s
            if world.clock.now_s < wake_s < next_s:
                world.clock.at(wake_s, self._tick, life)
            world.clock.at(next_s, self._wake, life)

    def _tick(self, life: int) -> None:
        if life == self._life and self.alive:
            self._poll()

    def _poll(self) -> None:
        while self.alive and self.election.wake_s <= self.now_s:
            self._do(self.election.poll(self.now_s))

    def _read(self) -> None:
        directory, election = self._world.directory, self.election
        epoch = election.epoch
        for record in directory.news(self.name, f"tickets/{epoch}"):
            election.ticket_seen(epoch, PeerId(record.subkey), record.value)
        doubted, self._doubted = self._doubted, []
        news = [record.value for record in directory.news(self.name, f"plan/{epoch}")]
        for published in sorted(doubted + news, key=lambda published: published.plan.fence):
            self._see(published)
        for record in directory.news(self.name, "broken"):
            self._broken.add(record.value)
        self._judge_own_plan()

    def _see(self, published: Published) -> None:
        plan = published.plan
        key = (plan.fence, plan.leader, published.hash)
        if key not in self._seen:
            self._seen[key] = published
            self._consent.learn(plan)
        fault = published.fault or invented(plan, self._world.peers)
        header = PlanHeader(plan.fence, plan.leader, published.hash, fault)
        if not header.verdict and self.election.deserves_a_look(header, self.now_s):
            previous = self._plan or self._newest_before(plan.fence)
            header = replace(header, doubt=self._consent.doubt(published, previous, self._running))
        self._do(self.election.plan_seen(header, self.now_s))
        if header.doubt:
            self._doubted.append(published)

    def _newest_before(self, fence: Fence) -> Published | None:
        """After a restart, the newest published plan stands for the one that was obeyed."""
        lower = (published for (seen, _, _), published in self._seen.items() if seen < fence)
        return max(lower, key=lambda published: published.plan.fence, default=None)

    def part_in(self, job: JobId) -> Said:
        """What this peer says of its part in a job."""
        if self._running is not None and self._running.job == job:
            return self._running.generation, JobPhase.RUNNING
        if self._given_up is not None and self._given_up.job == job:
            return self._given_up.generation, JobPhase.BROKEN
        return None, JobPhase.WAITING

    def _do(self, actions: Sequence[Action]) -> None:
        world = self._world
        for action in actions:
            if isinstance(action, Explain):
                world.tell(self.name, action.text)
            elif isinstance(action, DrawTicket):
                draw = hashlib.sha256(f"{world.rules.swarm}/{self.name}/{action.epoch}".encode()).digest()
                self._ticket = int.from_bytes(draw, "big")
                self._notices.ticket = None
                self.election.own_ticket(action.epoch, self._ticket)
            elif isinstance(action, PublishTicket):
                world.invariants.ticket(action.epoch, self.name)
                self._notices.ticket = self._ticket
                self._notices.show_ticket(action.epoch)
            elif isinstance(action, MakePlan):
                world.clock.after(0.2 + world.random.random(), self._make_plan, self._life, action.fence)
            elif isinstance(action, Reconsider):
                self._see(self._seen[action.fence, action.leader, action.plan_hash])
            elif isinstance(action, Expose):
                proof = (self._seen[action.fence, action.leader, digest] for digest in action.plan_hashes)
                self._hand_on(HANDED_ON_TO, *proof)
            elif isinstance(action, Adopt):
                self._adopt(self._seen[action.fence, action.leader, action.plan_hash])

    def _make_plan(self, life: int, fence: Fence) -> None:
        """Plan, obey the own plan and have that on disk, and only then publish it."""
        world = self._world
        if life != self._life or not self.alive:
            return
        previous = self.plan
        online = self._online()
        claimed = [peer._running for peer in online.values() if peer._running is not None]
        jobs = {job.job for job in (*claimed, *(() if previous is None else previous.jobs))}
        said = {job: {name: peer.part_in(job) for name, peer in online.items()} for job in jobs}
        kept = stays(what_runs(previous, claimed, said, lambda _: world.peers), said, online, self._broken)
        plan = plan_pairs(world.rules.swarm, fence, self.name, online, previous, kept, self._batches_done())
        published = Published(plan)
        for job in plan.jobs:
            if job.job not in kept:
                world.invariants.formed(self.name, job)
        if world.random.random() < world.crash_of_leader:
            self.crash()
            return
        self._see(published)
        if self._plan is published:
            self._notices.show_plan(self.election.epoch)
            if world.random.random() < world.crash_of_leader:
                self.crash()

    def _online(self) -> dict[PeerId, SwarmPeer]:
        """Peers in the directory that answer, this one among them."""
        names = {self.name, *map(PeerId, self._world.directory.snapshot(self.name, "alive"))}
        asked = {name: self._world.ask(self.name, name) for name in sorted(names)}
        return {name: peer for name, peer in asked.items() if peer is not None}

    def _batches_done(self) -> dict[JobId, int]:
        """For each job the newest round of which both stages' states are known to be saved."""
        rounds: dict[JobId, set[int]] = {}
        pieces = self._world.directory.snapshot(self.name, "pieces")
        for job, stage, done in pieces.values():
            if stage == 0 and f"{job}/1/{done}" in pieces:
                rounds.setdefault(job, set()).add(done)
        return {job: max(done) for job, done in rounds.items()}

    def _adopt(self, published: Published) -> None:
        world, plan = self._world, published.plan
        self.saved = self.election.adopted
        world.invariants.adopted(self.name, plan, published.hash)
        self._plan = published
        self._notices.plan = published if plan.leader == self.name else None
        self._hand_on(PUSHED_TO if plan.leader == self.name else HANDED_ON_TO, published)
        mine = published.by_peer.get(self.name)
        if mine is None:
            self._stop()
        elif self._running is None or mine.generation != self._running.generation:
            self._stop()
            if self._obedience.obey(mine.generation):
                self._start(mine)
            else:
                self._report(mine.generation)
        self._judge_own_plan()

    def _hand_on(self, most: int, *plans: Published) -> None:
        """To so many peers, as in the daemon."""
        world = self._world
        others = sorted(world.directory.snapshot(self.name, "alive"))
        for peer in world.random.sample(others, min(most, len(others))):
            for published in plans:
                world.network.send(self.name, PeerId(peer), published)

    def _start(self, job: JobPlan) -> None:
        world = self._world
        self.floor = self._obedience.floor
        self._running, self._given_up = job, None
        self._joined_s = self.now_s
        self._awaiting, self._mate_obeys = False, True
        self._note(self._membership.heard(self._mate(job), self.now_s))
        world.invariants.obeys(self.name, job.generation)
        world.tell(self.name, f"obeys {job.generation} of {job.job} with {self._mate(job)}")
        if job.job in world.trained:
            self._stage = self._load(job)

    def _load(self, job: JobPlan) -> Stage:
        """Restore the state that the plan names, and begin."""
        world, mate = self._world, self._mate(job)
        number = job.peers.index(self.name)
        batches = world.blobs[job.job, number, job.batches_done] if job.batches_done else ()

        def save(state: tuple[int, ...]) -> None:
            piece = (job.job, number, len(state))
            world.blobs[piece] = state
            world.directory.write(self.name, "pieces", f"{job.job}/{number}/{len(state)}", piece, 1e9)

        def send(message: Frame | Receipt) -> None:
            world.network.send(self.name, mate, message)

        return Stage(self.name, job, batches, world.clock, world.invariants, send, save)

    def _stop(self) -> None:
        if self._running is not None:
            self._membership.forget(self._mate(self._running))
        if self._stage is not None:
            self._stage.stop()
        self._running = self._stage = None
        self._obedience.stop()
        self._world.invariants.obeys(self.name, None)

    def _watch_mate(self) -> None:
        """Ping the other member of the cluster; give the cluster up when it is gone or obeys another."""
        running = self._running
        if running is None:
            return
        mate = self._mate(running)
        if self._awaiting:
            self._note(self._membership.silent(mate, self.now_s))
        self._note(self._membership.tick(self.now_s))
        late = not self._mate_obeys and self.now_s - self._joined_s > JOIN_WITHIN_S
        if late or self._mate_gone(running):
            self._stop()
            self._given_up = running
            self._report(running.generation)
            self._judge_own_plan()
            return
        self._awaiting = True
        self._world.network.send(self.name, mate, Ping(False, running.generation))

    def _note(self, changes: list[Changed]) -> None:
        for change in changes:
            if change.new is PeerState.GONE:
                self.election.peer_gone(change.peer)
            elif change.old is PeerState.GONE:
                self.election.peer_back(change.peer)

    def _report(self, generation: Generation) -> None:
        self._broken.add(generation)
        self._notices.report(generation)

    def _judge_own_plan(self) -> None:
        if self._plan is not None:
            broken = self._broken & self._plan.generations
            self.election.replan_wanted(f"generation {min(broken)} broke" if broken else "")

    def _receive(self, sender: PeerId, message: Ping | Frame | Receipt | Published) -> None:
        running = self._running
        if isinstance(message, Published):
            if (message.plan.fence, message.plan.leader, message.hash) not in self._seen:
                self._see(message)
                self._poll()
            return
        if isinstance(message, Ping):
            if not message.answer:
                self._world.network.send(self.name, sender, Ping(True, self._obedience.generation))
            elif running is not None and sender == self._mate(running):
                self._awaiting = False
                self._mate_obeys = message.generation == running.generation
                self._note(self._membership.heard(sender, self.now_s))
            return
        try:
            self._obedience.check(message.generation)
        except StaleGenerationError:
            return
        self._world.invariants.frame(sender, self.name, message.generation)
        if self._stage is not None:
            self._stage.receive(message)

    def _mate_gone(self, job: JobPlan) -> bool:
        return self._membership.state(self._mate(job)) is PeerState.GONE

    def _mate(self, job: JobPlan) -> PeerId:
        return next(peer for peer in job.peers if peer != self.name)
