"""A deterministic simulation of asynchronous pipelines: virtual time, lossy links, clusters that average.

Problem: whether the schedule deadlocks, idles or mixes up versions depends on timing, and real runs show only
a few timings. Solution: the product's `StageSchedule`, `Outbox`, `Inbox`, `Shares`, `segments` and `Ledger`
run under a virtual clock with any op times, latencies and connection breaks, and a `StageWatch` checks every
rule after every event. The same seed gives the same run.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

from ravnest_p2p.core.ledger import Ledger, Shares
from ravnest_p2p.core.pipeline.schedule import (
    Average,
    Backward,
    Forward,
    Op,
    Snapshot,
    Speculate,
    StageSchedule,
    Step,
)
from ravnest_p2p.core.pipeline.window import FIXED, Echo, Window
from ravnest_p2p.core.rings import Member, Segment, segments
from ravnest_p2p.core.types import ClusterPlan, Generation, PeerId, StageAssignment
from ravnest_p2p.testing.clock import VirtualClock
from ravnest_p2p.testing.lossy_link import Faults, LossyLink
from ravnest_p2p.testing.pipeline_watch import InvariantViolation, StageWatch

GENERATION = Generation(0, 0, "simulated")


@dataclass(frozen=True)
class SimStage:
    """Layers [lo, hi), the window, and what its ops cost."""

    lo: int
    hi: int
    staleness: int
    forward_s: float = 1.0
    backward_s: float = 1.0


@dataclass(frozen=True)
class SimCluster:
    stages: tuple[SimStage, ...]
    updates_per_round: int = 4
    latency_s: float = 0.0
    overlap: int = 0


@dataclass(frozen=True)
class Scenario:
    """One job's generation.

    Attributes:
        staleness: how τ is chosen, of `core.pipeline.window`; a stage's `staleness` is the bound.
        update_s: time of a step, and of building ŵ.
        average_s: time of a ring round once all of its members take part.
        link_frames: credit of each link.
    """

    clusters: tuple[SimCluster, ...]
    microbatches_per_update: int
    total_batches: int
    staleness: str = FIXED
    update_s: float = 0.0
    average_s: float = 0.0
    link_frames: int = 64
    faults: Faults = field(default_factory=Faults)
    seed: int = 0

    @property
    def shares(self) -> Shares:
        return Shares(0, self.total_batches, tuple(c.updates_per_round for c in self.clusters))

    @property
    def segments(self) -> list[Segment]:
        return segments(
            [
                ClusterPlan(
                    tuple(
                        StageAssignment(PeerId(f"{c}.{s}"), stage.lo, stage.hi, stage.staleness)
                        for s, stage in enumerate(cluster.stages)
                    ),
                    cluster.updates_per_round,
                )
                for c, cluster in enumerate(self.clusters)
            ]
        )


@dataclass
class StageReport:
    """What one stage did: (start, op) in order, busy time, end, micro-batches in flight at each averaging."""

    trace: list[tuple[float, Op]] = field(default_factory=list)
    busy_s: float = 0.0
    end_s: float = 0.0
    in_flight_at_average: list[int] = field(default_factory=list)

    @property
    def ops(self) -> list[Op]:
        return [op for _, op in self.trace]


@dataclass
class Report:
    """A finished run; `stages[cluster][stage]`."""

    makespan_s: float
    stages: list[list[StageReport]]
    breaks: int
    repeats: int

    def utilisation(self, cluster: int, stage: int) -> float:
        return self.stages[cluster][stage].busy_s / self.makespan_s


class _Rings:
    """All segments' rings: a round of a segment ends when each member has come to it."""

    def __init__(self, scenario: Scenario, clock: VirtualClock) -> None:
        self._clock, self._average_s = clock, scenario.average_s
        self._segments, self._shares = scenario.segments, scenario.shares
        self.ledgers = [Ledger() for _ in self._segments]
        for ledger in self.ledgers:
            ledger.open(GENERATION, self._shares)
        self._came: Counter[tuple[int, int]] = Counter()
        self._open: dict[tuple[Member, int], set[int]] = {}
        self._waiting: dict[tuple[Member, int], Callable[[], None]] = {}

    def claim(self, member: Member, u: int) -> None:
        for number in self._held_by(member):
            batch = self._shares.batch(member.cluster, u)
            self.ledgers[number].claim(GENERATION, member.cluster, u, batch)

    def join(self, member: Member, r: int) -> None:
        """A stage takes part in round `r` of all of its segments."""
        held = self._held_by(member)
        self._open[member, r] = held
        for number in sorted(held):
            self._came[number, r] += 1
            if self._came[number, r] == len(self._segments[number].members):
                self._clock.after(self._average_s, self._done, number, r)

    def wait(self, member: Member, r: int, resume: Callable[[], None]) -> None:
        """`resume` is called when all of the member's segments are done with the round."""
        self._waiting[member, r] = resume
        self._look(member, r)

    def _done(self, number: int, r: int) -> None:
        self.ledgers[number].commit(GENERATION, r)
        for member in self._segments[number].members:
            self._open[member, r].remove(number)
            self._look(member, r)

    def _look(self, member: Member, r: int) -> None:
        if not self._open[member, r] and (member, r) in self._waiting:
            self._waiting.pop((member, r))()

    def _held_by(self, member: Member) -> set[int]:
        return {number for number, segment in enumerate(self._segments) if member in segment.members}


@dataclass
class _Stage:
    """The effects of one stage: its compute thread, its two links, its watch."""

    cluster: int
    cost_s: dict[type[Op], float]
    schedule: StageSchedule
    watch: StageWatch
    window: Window
    clock: VirtualClock
    rings: _Rings
    begun: int | None = None
    report: StageReport = field(default_factory=StageReport)
    onward: LossyLink[tuple[int, float]] | None = None
    back: LossyLink[tuple[int, Echo]] | None = None

    def activation(self, frame: tuple[int, float]) -> None:
        i, slowest_s = frame
        self.window.activation_arrived(i, self.clock.now_s, slowest_s)
        self.schedule.activation_arrived(i)
        self.watch.activations.add(i)
        self.advance()

    def gradient(self, frame: tuple[int, Echo]) -> None:
        i, echo = frame
        self.window.gradient_arrived(i, self.clock.now_s, echo)
        self.schedule.gradient_arrived(i)
        self.watch.gradients.add(i)
        self.advance()

    def advance(self) -> None:
        op = self.schedule.next()
        if op is None:
            self.watch.idle()
            return
        self.watch.started(op)
        self.report.trace.append((self.clock.now_s, op))
        member = Member(self.cluster, self.schedule.stage)
        if isinstance(op, Snapshot):
            self.begun = op.round
            self.rings.join(member, op.round)
            self._finish(op)
        elif isinstance(op, Average):
            self.report.in_flight_at_average.append(self.schedule.in_flight)
            if self.begun != op.round:
                self.rings.join(member, op.round)
            self.rings.wait(member, op.round, partial(self._finish, op))
        else:
            self.report.busy_s += self.cost_s[type(op)]
            self.clock.after(self.cost_s[type(op)], self._finish, op)

    def _finish(self, op: Op) -> None:
        self.schedule.finished(op)
        self.watch.finished(op)
        now_s = self.report.end_s = self.clock.now_s
        self.window.took(op, self.cost_s.get(type(op), 0.0))
        if isinstance(op, Backward):
            self.schedule.wanted = self.window.choose(self.schedule.version)
        if isinstance(op, Forward) and self.onward is not None:
            self.onward.send((op.i, self.window.activation_left(op.i, now_s)))
        elif isinstance(op, Backward) and self.back is not None:
            self.back.send((op.i, self.window.gradient_left(op.i, now_s)))
        elif isinstance(op, Step):
            self.rings.claim(Member(self.cluster, self.schedule.stage), op.u)
        self.advance()


def simulate(scenario: Scenario, schedule_type: type[StageSchedule] = StageSchedule) -> Report:
    """Run a generation from its first micro-batch to its last averaging.

    Args:
        schedule_type: the policy under test; tests hand in broken ones.
    Raises:
        InvariantViolation: a rule of the pipeline or of the ledger does not hold.
    """
    clock, rng = VirtualClock(), random.Random(scenario.seed)
    rings = _Rings(scenario, clock)
    clusters = [_stages(scenario, c, schedule_type, clock, rings) for c in range(len(scenario.clusters))]
    links: list[LossyLink[tuple[int, float]] | LossyLink[tuple[int, Echo]]] = []
    for stages, cluster in zip(clusters, scenario.clusters, strict=True):
        for sender, receiver in pairwise(stages):
            wire = (clock, rng, cluster.latency_s, scenario.faults, scenario.link_frames)
            sender.onward = LossyLink(*wire, receiver.activation)
            receiver.back = LossyLink(*wire, sender.gradient)
            links += [sender.onward, receiver.back]
    everyone = [stage for stages in clusters for stage in stages]
    for stage in everyone:
        stage.advance()
    clock.run_until(math.inf)
    for stage in everyone:
        stage.watch.ended()
        stage.watch.require(stage.schedule.done, "the schedule knows that it is done")
    for ledger in rings.ledgers:
        if ledger.violations() or ledger.batches_done != scenario.total_batches:
            raise InvariantViolation(f"{ledger.batches_done} batches done, {ledger.violations()}")
    return Report(
        max(stage.report.end_s for stage in everyone),
        [[stage.report for stage in stages] for stages in clusters],
        sum(link.breaks for link in links),
        sum(link.repeats for link in links),
    )


def _stages(
    scenario: Scenario, c: int, schedule_type: type[StageSchedule], clock: VirtualClock, rings: _Rings
) -> list[_Stage]:
    cluster, shares, m = scenario.clusters[c], scenario.shares, scenario.microbatches_per_update
    count, microbatches = len(cluster.stages), shares.local_updates(c) * m
    made = []
    for s, sim in enumerate(cluster.stages):
        numbers = (s, count, sim.staleness, m, microbatches, cluster.updates_per_round, shares.rounds)
        upstream = cluster.stages[s - 1].staleness if s else None
        schedule = schedule_type(*numbers, upstream, cluster.overlap)
        fixed = scenario.staleness == FIXED
        watch = StageWatch(f"cluster {c} stage {s}", *numbers, fixed=fixed, overlap=cluster.overlap)
        window = Window(count - 1 - s, sim.staleness, scenario.staleness)
        schedule.wanted = window.chosen
        cost_s: dict[type[Op], float] = {
            Forward: sim.forward_s,
            Backward: sim.backward_s,
            Speculate: scenario.update_s,
            Step: scenario.update_s,
        }
        made.append(_Stage(c, cost_s, schedule, watch, window, clock, rings))
    return made
