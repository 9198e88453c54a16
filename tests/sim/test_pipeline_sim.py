"""Whole pipelines in virtual time: full use, no deadlock, and a watch that catches every broken rule."""

from __future__ import annotations

from math import floor

import pytest

from ravnest_p2p.core.errors import MicrobatchOrderError, OurFault
from ravnest_p2p.core.pipeline import schedule as schedule_module
from ravnest_p2p.core.pipeline.schedule import (
    Average,
    Backward,
    Forward,
    Op,
    Snapshot,
    Speculate,
    StageSchedule,
    Step,
    closed_form,
    staleness_for,
)
from ravnest_p2p.testing.lossy_link import Faults
from ravnest_p2p.testing.pipeline_sim import Report, Scenario, SimCluster, SimStage, simulate
from ravnest_p2p.testing.pipeline_watch import InvariantViolation


def cluster(
    *cuts: int,
    m: int = 4,
    kappa: int = 1000,
    latency_s: float = 0.0,
    window_for: float | None = None,
    op_s: float = 1.0,
    overlap: int = 0,
) -> SimCluster:
    """A cluster cut at `cuts`, with the windows for `window_for` (or its true latency)."""
    ratio = latency_s if window_for is None else window_for
    count = len(cuts) - 1
    return SimCluster(
        tuple(
            SimStage(cuts[s], cuts[s + 1], staleness_for(s, count, ratio, m), op_s, op_s)
            for s in range(count)
        ),
        kappa,
        latency_s,
        overlap,
    )


def drawn(report: Report, columns: int) -> list[str]:
    """The run as the module's docstring draws it: a column per second, marks before the next op."""
    lines = []
    for number, stage in enumerate(report.stages[0]):
        cells: dict[int, str] = {}
        for at_s, op in stage.trace:
            match op:
                case Forward(i, _, speculative):
                    text = f"{'f' if speculative else 'F'}{i}"
                case Backward(i):
                    text = f"B{i}"
                case Speculate():
                    text = "^"
                case _:
                    text = "|"
            cells[floor(at_s)] = cells.get(floor(at_s), "") + text
        row = "".join(cells.get(column, ".").ljust(4) for column in range(columns))
        lines.append(f"    stage {number}   {row}".rstrip())
    return lines


def test_the_docstring_draws_what_really_happens() -> None:
    lines = drawn(simulate(Scenario((cluster(0, 1, 2, 3),), 4, 20)), 20)
    assert "\n".join(lines) in str(schedule_module.__doc__)


@pytest.mark.parametrize("stages", [2, 4])
def test_every_stage_is_busy_with_the_right_window(stages: int) -> None:
    report = simulate(Scenario((cluster(*range(stages + 1), m=8),), 8, 50))
    assert min(report.utilisation(0, s) for s in range(stages)) >= 0.97


def test_latency_needs_its_window() -> None:
    wide = simulate(Scenario((cluster(0, 1, 2, 3, 4, m=8, latency_s=1.0),), 8, 60))
    narrow = simulate(Scenario((cluster(0, 1, 2, 3, 4, m=8, latency_s=1.0, window_for=0.0),), 8, 60))
    assert min(wide.utilisation(0, s) for s in range(4)) >= 0.97
    assert max(narrow.utilisation(0, s) for s in range(4)) <= 0.60


def test_a_trace_equals_the_closed_form() -> None:
    scenario = Scenario(
        (cluster(0, 1, 2, 3, kappa=3, latency_s=0.7),),
        6,
        20,
        update_s=0.3,
        faults=Faults(0.02, 0.05, 4.0, 2.0),
    )
    report = simulate(scenario)
    assert report.breaks
    assert report.repeats
    for stage, planned in zip(report.stages[0], scenario.clusters[0].stages, strict=True):
        seen: dict[int, dict[type[Op], int]] = {}
        for op in stage.ops:
            if isinstance(op, Forward | Backward):
                seen.setdefault(op.i, {})[type(op)] = op.version
        assert list(seen) == list(range(120))
        for i, versions in seen.items():
            expected = closed_form(i, planned.staleness, 6)
            assert (versions[Forward], versions[Backward]) == expected


def test_clusters_cut_differently_average_without_draining() -> None:
    scenario = Scenario(
        (
            cluster(0, 2, 4, 6, kappa=2),
            cluster(0, 3, 6, kappa=3, op_s=0.4, latency_s=0.5),
            cluster(0, 1, 2, 5, 6, kappa=1, op_s=2.5),
        ),
        microbatches_per_update=4,
        total_batches=6 * 7 + 4,
        average_s=1.5,
    )
    report = simulate(scenario)
    for stages, planned in zip(report.stages, scenario.clusters, strict=True):
        for stage, sim in zip(stages, planned.stages, strict=True):
            assert len(stage.in_flight_at_average) == scenario.shares.rounds == 8
            if sim.staleness:
                assert all(stage.in_flight_at_average[:-2]), "the pipeline drained before an averaging"
    assert scenario.shares.weights(7) == (2, 2, 0)


@pytest.mark.parametrize(("overlap", "hidden"), [(0, 0.0), (1, 0.25), (4, 1.0)])
def test_a_round_goes_on_beside_training(overlap: int, hidden: float) -> None:
    """An update of four micro-batches takes 8 s, so one hides a quarter of a round of 32 s."""
    rounds = 10

    def seconds(average_s: float) -> float:
        clusters = (cluster(0, 1, kappa=4, overlap=overlap), cluster(0, 1, kappa=4, overlap=overlap))
        return simulate(Scenario(clusters, 4, rounds * 8, average_s=average_s)).makespan_s

    # The last round has nothing to hide behind.
    assert seconds(32.0) - seconds(0.0) == pytest.approx(32.0 * (1 + (rounds - 1) * (1 - hidden)))


def test_rounds_overlap_in_clusters_cut_differently() -> None:
    scenario = Scenario(
        (
            cluster(0, 2, 4, 6, kappa=4, overlap=3),
            cluster(0, 3, 6, kappa=3, op_s=0.4, latency_s=0.5, overlap=0),
            cluster(0, 1, 2, 5, 6, kappa=1, op_s=2.5, overlap=1),
        ),
        microbatches_per_update=4,
        total_batches=8 * 8,
        average_s=21.5,
        faults=Faults(0.02, 0.05, 4.0, 2.0),
    )
    report = simulate(scenario)
    for its, stages in zip(scenario.clusters, report.stages, strict=True):
        for stage in stages:
            ops = [op for op in stage.ops if isinstance(op, Snapshot | Average)]
            assert len(ops) == 8 + (7 if its.overlap else 0)


def test_the_same_seed_gives_the_same_run() -> None:
    scenario = Scenario(
        (cluster(0, 1, 2, latency_s=0.5),), 4, 10, faults=Faults(0.05, 0.05, 3.0, 1.0), seed=5
    )
    assert simulate(scenario).stages == simulate(scenario).stages


def test_one_frame_of_credit_is_enough() -> None:
    scenario = Scenario((cluster(0, 1, 2, 3),), 4, 10, link_frames=1, faults=Faults(0.1, 0.1), seed=1)
    assert simulate(scenario).breaks


class WindowTooWide(StageSchedule):
    def _forward(self) -> Forward | None:
        i = self._done[Forward]
        if i >= self._activations or i > self.completed + self.staleness + 1:
            return None
        versions = closed_form(i, self.staleness, self.microbatches_per_update)
        return Forward(i, versions.forward, versions.forward < versions.backward)


class WindowTooNarrow(StageSchedule):
    def _forward(self) -> Forward | None:
        return None if self.in_flight >= max(1, self.staleness) else StageSchedule._forward(self)


class ForwardFirst(StageSchedule):
    def _backward(self) -> Backward | None:
        return None if self._forward() else StageSchedule._backward(self)


class BackwardFirst(StageSchedule):
    def _forward_in_turn(self) -> Forward | None:
        return None


class StepTooEarly(StageSchedule):
    def _step(self) -> Step | None:
        u = self._done[Step]
        return Step(u) if self.completed == (u + 1) * self.microbatches_per_update - 1 else None


class StepTooLate(StageSchedule):
    def _step(self) -> Step | None:
        u = self._done[Step]
        last = self.completed == self.microbatches
        due = (u + 1) * self.microbatches_per_update
        return Step(u) if self.completed == due + (not last) else None


class SpeculateTooLate(StageSchedule):
    def _speculate(self) -> Speculate | None:
        u = self._done[Speculate] + 1
        reached = self.completed == u * self.microbatches_per_update - self.staleness + 1
        return Speculate(u, self.staleness) if reached and self.staleness and u < self.updates else None


class SpeculateForNothing(StageSchedule):
    def _speculate(self) -> Speculate | None:
        u = self._done[Speculate] + 1
        reached = self.completed == u * self.microbatches_per_update - self.staleness
        return Speculate(u, self.staleness) if reached and self.staleness else None


class CrossesOnLiveWeights(StageSchedule):
    def _forward(self) -> Forward | None:
        op = StageSchedule._forward(self)
        return op and Forward(op.i, self.version, False)


class DrainsBeforeAveraging(StageSchedule):
    def _forward(self) -> Forward | None:
        op = StageSchedule._forward(self)
        in_round = (self._done[Average] + 1) * self.updates_per_round * self.microbatches_per_update
        return op if op and op.i < in_round else None


class AveragesLate(StageSchedule):
    def _average(self) -> Average | None:
        return StageSchedule._average(self) if self.completed % self.microbatches_per_update else None


class SkipsTheLastRound(StageSchedule):
    def _average(self) -> Average | None:
        op = StageSchedule._average(self)
        return op if op and op.round + 1 != self.rounds else None


class TakesNoSnapshot(StageSchedule):
    def _snapshot(self) -> Snapshot | None:
        return None


class TakesTheMeanEarly(StageSchedule):
    def _average(self) -> Average | None:
        number = self._done[Average]
        return Average(number) if self._begun > number else StageSchedule._average(self)


class TakesTheMeanLate(StageSchedule):
    def _average(self) -> Average | None:
        late = self.version < self.updates and self.version % self.updates_per_round == self.overlap
        return None if late else StageSchedule._average(self)


@pytest.mark.parametrize(
    ("broken", "rule"),
    [
        (WindowTooWide, "in flight in a window|ŵ is built before|live weights"),
        (WindowTooNarrow, "idle while an activation"),
        (StepTooEarly, "a step has exactly its batch"),
        (StepTooLate, "the step comes before everything else|a step was due"),
        (SpeculateTooLate, "ŵ is built before"),
        (SpeculateForNothing, "a batch that exists"),
        (CrossesOnLiveWeights, "only they, run on ŵ"),
        (DrainsBeforeAveraging, "idle while an activation"),
        (AveragesLate, "pauses for the averaging|an averaging was due"),
        (SkipsTheLastRound, "an averaging was due"),
        (TakesNoSnapshot, "handed over at their update|a snapshot was due"),
        (TakesTheMeanEarly, "the averaging is at its update"),
        (TakesTheMeanLate, "pauses for the averaging|an averaging was due"),
    ],
)
def test_a_broken_rule_is_caught(broken: type[StageSchedule], rule: str) -> None:
    overlap = int("Snapshot" in broken.__name__ or "Mean" in broken.__name__)
    clusters = cluster(0, 1, 2, 3, kappa=2, overlap=overlap), cluster(0, 2, 3, kappa=2, overlap=overlap)
    scenario = Scenario(clusters, 4, 24)
    simulate(scenario)
    with pytest.raises(InvariantViolation, match=rule):
        simulate(scenario, broken)


class ForgetsWhatArrived(StageSchedule):
    """Counts an activation twice, as an inbox without sequence numbers would."""

    def activation_arrived(self, i: int) -> None:
        StageSchedule.activation_arrived(self, i)
        StageSchedule.activation_arrived(self, i)


def test_a_repeated_message_is_refused() -> None:
    with pytest.raises(MicrobatchOrderError, match="activation 0 at stage 1"):
        simulate(Scenario((cluster(0, 1, 2),), 4, 4), ForgetsWhatArrived)


def test_a_result_nobody_asked_for_is_our_fault() -> None:
    schedule = StageSchedule(0, 1, 0, 4, 8)
    with pytest.raises(OurFault, match="0F0"):
        schedule.finished(Forward(0, 0, False))


@pytest.mark.parametrize(
    ("broken", "rule"),
    [
        (ForwardFirst, "a backward goes after a forward"),
        (BackwardFirst, "a forward goes after a backward"),
    ],
)
def test_forwards_and_backwards_take_turns(broken: type[StageSchedule], rule: str) -> None:
    """Where messages come in bunches, or the order would make no difference."""
    faults = Faults(break_probability=0.02, reconnect_s=4.0, jitter_s=2.0)
    scenario = Scenario((cluster(0, 1, 2, 3, latency_s=1.0),), 4, 40, faults=faults)
    simulate(scenario)
    with pytest.raises(InvariantViolation, match=rule):
        simulate(scenario, broken)
