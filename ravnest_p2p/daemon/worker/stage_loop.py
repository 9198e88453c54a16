"""A stage at work: what the schedule says next is computed, sent, averaged, measured.

The schedule (`core.pipeline`) decides, the trainer (`training`) computes, the neighbours and rings move
tensors; this loop only carries events between them.

Problem: between two operations the compute thread must not wait for the event loop, which may be busy with a
frame of megabytes just then. Solution: the compute thread asks the schedule itself, under a lock that is held
for microseconds, and goes from operation to operation; the event loop tells the schedule what arrived, and
is handed what is to be sent. Only to wait for a mean is the thread given back.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

from ravnest_p2p.core.ledger import DataOrder, Sample, Shares, sample_of
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
from ravnest_p2p.core.pipeline.window import Echo, Window
from ravnest_p2p.core.pipeline.window_advice import Shortage
from ravnest_p2p.daemon.messages import MAX_WINDOW, Message, Report, StartRun
from ravnest_p2p.daemon.worker.averaging import Compute, RingExchange
from ravnest_p2p.daemon.worker.loading import LoadedStage
from ravnest_p2p.daemon.worker.meter import Meter
from ravnest_p2p.daemon.worker.neighbours import Neighbours
from ravnest_p2p.daemon.worker.rounds import Rounds, Saved
from ravnest_p2p.daemon.worker.timeline import ACTIVATION, GRADIENT, Timeline
from ravnest_p2p.training import FieldReader, Forwarded

SAMPLES_NAMED = 8

Post = Callable[..., object]
Result = TypeVar("Result")


def shares_of(start: StartRun) -> Shares:
    """Which batches each cluster of the generation trains."""
    kappas = tuple(cluster.updates_per_round for cluster in start.plan.clusters)
    return Shares(start.plan.batches_done, start.spec.total_batches, kappas)


class StageLoop:
    """Args: compute: runs work in the compute thread, beside in another; report: tells ravnestd."""

    def __init__(
        self,
        start: StartRun,
        stage: LoadedStage,
        readers: Mapping[str, FieldReader],
        compute: Compute,
        beside: Compute,
        report: Callable[[Message], Awaitable[None]],
    ) -> None:
        self._start = start
        self._trainer = stage.trainer
        self._readers = readers
        self._compute = compute
        self._news = threading.Condition(threading.Lock())
        self._closed = False
        self._m = start.spec.microbatches_per_update
        self._shares = shares_of(start)
        self._order = DataOrder(start.spec.samples, start.spec.microbatch_size, self._m, seed=start.spec.seed)
        self._place = start.plan.clusters[start.cluster].stages[start.stage]
        self._schedule = self._make_schedule()
        after = len(start.plan.clusters[start.cluster].stages) - 1 - start.stage
        version = stage.trainer.version
        self._window = Window(after, self._place.staleness, start.spec.staleness, version)
        self._shortage = Shortage()
        self._schedule.wanted = self._window.chosen
        held = [*stage.trainer.params.values(), *stage.trainer.buffers.values()]
        stage.trainer.skipped.named = self._named
        self._meter = Meter(Path(start.folder), version, held, stage.compiling, stage.trainer.device)
        self.timeline = Timeline(Path(start.folder), start.plan.generation, start.cluster, start.stage)
        self.rounds = Rounds(start, stage.trainer, self._shares, beside, report, self._round_saved)

    def activation_arrived(self, microbatch: int, slowest_s: float) -> None:
        self.timeline.arrived(ACTIVATION, microbatch)
        with self._news:
            self._schedule.activation_arrived(microbatch)
            self._window.activation_arrived(microbatch, time.monotonic(), slowest_s)
            self._news.notify()

    def gradient_arrived(self, microbatch: int, echo: Echo) -> None:
        self.timeline.arrived(GRADIENT, microbatch)
        with self._news:
            self._schedule.gradient_arrived(microbatch)
            self._window.gradient_arrived(microbatch, time.monotonic(), echo)
            self._news.notify()

    def frame_sent(self, what: str, microbatch: int, size_bytes: int, busy_s: float) -> None:
        """A link took a frame of activations or gradients, which kept it busy for so long."""
        self.timeline.sent(what, microbatch, size_bytes)
        with self._news:
            self._window.link_took(what, busy_s)

    async def run(self, neighbours: Neighbours, rings: RingExchange) -> None:
        """Until every update is applied and every round averaged."""
        training = asyncio.create_task(self._train_and_average(neighbours, rings))
        try:
            await asyncio.wait({training, self.rounds.failed}, return_when=asyncio.FIRST_COMPLETED)
            (self.rounds.failed if self.rounds.failed.done() else training).result()
        finally:
            training.cancel()
            self.rounds.close()
        await neighbours.flush()

    async def _train_and_average(self, neighbours: Neighbours, rings: RingExchange) -> None:
        post = asyncio.get_running_loop().call_soon_threadsafe
        while (op := await self._compute(lambda: self._train(neighbours, rings, post))) is not None:
            started_s = time.monotonic()
            await self.rounds.take_in(op.round, rings, self._compute)
            seconds = time.monotonic() - started_s
            self._meter.averaged(seconds)
            self.timeline.ran(op, seconds)
            self._finished(op, _nothing)

    def progress(self, bytes_sent: int, bytes_received: int, rtt_s: float) -> Report:
        """What was measured so far; losses are handed out once.

        Args:
            rtt_s: of the link to the stage after; 0 where there is none, or it is not known.
        """
        self.timeline.flush()
        place = self._place
        about = {
            "lo": place.lo,
            "hi": place.hi,
            "staleness_bound": place.staleness,
            "staleness_limit": self._window.limit(self._trainer.version),
            "window": self._window.chosen + 1,
            "window_wanted": min(self._window.wanted + 1.0, MAX_WINDOW),
            "window_needed": min(self._shortage.wanted, MAX_WINDOW),
            "way_s": self._window.way_s,
            "rtt_s": rtt_s,
            "pace_s": self._window.pace_s,
            "recompute": place.recompute,
            "kappa": self.rounds.schedule.kappa,
            "kappa_why": self.rounds.schedule.why,
            "skipped": self._trainer.skipped.microbatches,
            "skipped_updates": self._trainer.skipped.updates,
            "skipped_why": self._trainer.skipped.why,
            "last": self._start.stage + 1 == len(self._start.plan.clusters[self._start.cluster].stages),
        }
        return self._meter.report(bytes_sent, bytes_received).model_copy(update=about)

    def close(self) -> None:
        """Close the files; an operation that is still running leaves no more traces."""
        self.rounds.close()
        with self._news:
            self._closed = True
            self._news.notify()
            self._meter.close()
            self.timeline.close()

    def _round_saved(self, saved: Saved) -> None:
        self._meter.saved(saved.batches_done)
        self.timeline.averaged(saved.number, saved.seconds, saved.sent_bytes)

    def _make_schedule(self) -> StageSchedule:
        stages, number = self._start.plan.clusters[self._start.cluster].stages, self._start.stage
        return StageSchedule(
            stage=number,
            stages=len(stages),
            staleness=self._place.staleness,
            microbatches_per_update=self._m,
            microbatches=self._shares.local_updates(self._start.cluster) * self._m,
            updates_per_round=self._start.plan.clusters[self._start.cluster].updates_per_round,
            rounds=self._shares.rounds,
            upstream_staleness=stages[number - 1].staleness if number else None,
            overlap=self._start.plan.clusters[self._start.cluster].overlap,
        )

    def _train(self, neighbours: Neighbours, rings: RingExchange, post: Post) -> Average | None:
        """In the compute thread: one operation after the other until an averaging is due, or the end."""
        while (op := self._next()) is not None:
            match op:
                case Forward():
                    self._forward(op, neighbours, post)
                case Backward():
                    self._backward(op, neighbours, post)
                case Speculate():
                    self._timed(op, neighbours, partial(self._trainer.speculate, op.crossing))
                    self._finished(op, _nothing)
                case Step():
                    self.rounds.wait_copied()
                    self._timed(op, neighbours, self._trainer.step)
                    self._finished(op, self._stepped)
                case Snapshot() | Average() if self.rounds.schedule.due(op.round) is None:
                    self._finished(op, _nothing)
                case Snapshot():
                    begun = self._timed(op, neighbours, self.rounds.snapshot)
                    self._finished(op, _nothing)
                    post(self.rounds.begin, op.round, rings, begun)
                case Average():
                    return op
        return None

    def _next(self) -> Op | None:
        """The next operation, as soon as there is one; None at the end."""
        with self._news:
            while not (self._closed or self._schedule.done):
                op = self._schedule.next()
                if op is not None:
                    return op
                self._news.wait()
        return None

    def _finished(self, op: Op, note: Callable[[], Result]) -> Result | None:
        """Tell the schedule; returns what `note` gives, None where the run was closed meanwhile.

        Called before anything that the operation produced is posted, so that no answer overtakes it.

        Args:
            note: counts what is to be counted, under the lock.
        """
        with self._news:
            if self._closed:
                return None
            self._schedule.finished(op)
            return note()

    def _timed(self, op: Op, neighbours: Neighbours, work: Callable[[], Result]) -> Result:
        result, seconds = self._meter.timed(work)
        self.timeline.ran(op, seconds)
        neighbours.compute_time.took(op, seconds)
        self._window.took(op, seconds)
        return result

    def _forward(self, op: Forward, neighbours: Neighbours, post: Post) -> None:
        sample = self._sample(op.i)
        received, note = neighbours.take_activation(op.i), neighbours.activation_note(op.i)
        self.rounds.schedule.numbers.before(note.told)

        def work() -> Forwarded:
            data = {name: reader.rows(sample.indices) for name, reader in self._readers.items()}
            return self._trainer.forward(
                op.i, received, data, sample.seed, speculative=op.speculative, note=note
            )

        result = self._timed(op, neighbours, work)

        def count() -> float:
            self._meter.forwarded(op.i, result.version, crossed=op.speculative)
            if result.loss is not None:
                self._meter.loss(sample.batch, result.loss, self._m)
            return self._window.activation_left(op.i, time.monotonic())

        slowest_s = self._finished(op, count)
        if slowest_s is not None and result.loss is None:
            self.timeline.queued(ACTIVATION, op.i)
            note = result.note._replace(told=self.rounds.schedule.numbers.onward())
            post(neighbours.send_activation, op.i, result.outputs, slowest_s, note)

    def _backward(self, op: Backward, neighbours: Neighbours, post: Post) -> None:
        gradients, note = neighbours.take_gradient(op.i), neighbours.gradient_note(op.i)
        self.rounds.schedule.numbers.whole(note.told)
        received_gradients = self._timed(
            op, neighbours, lambda: self._trainer.backward(op.i, gradients, note)
        )

        def count() -> Echo:
            staleness = self._schedule.staleness_of(op.version)
            samples = self._start.spec.microbatch_size
            self._meter.backed(op.i, self._trainer.version, samples, staleness)
            self._schedule.wanted = self._window.choose(self._trainer.version)
            return self._window.gradient_left(op.i, time.monotonic())

        echo = self._finished(op, count)
        if echo is not None and self._start.stage:
            self.timeline.queued(GRADIENT, op.i)
            note = self._trainer.gradient_note._replace(told=self.rounds.schedule.numbers.back())
            post(neighbours.send_gradient, op.i, received_gradients, echo, note)

    def _stepped(self) -> None:
        version = self._trainer.version
        self._meter.stepped(version)
        self._shortage.told(self._window.wanted + 1.0, self._window.limit(version) + 1)

    def _named(self, i: int) -> str:
        """Micro-batch i as its requester can find it."""
        sample = self._sample(i)
        shown = ", ".join(map(str, sample.indices[:SAMPLES_NAMED]))
        more = ", …" if len(sample.indices) > SAMPLES_NAMED else ""
        return f"batch {sample.batch}, micro-batch {i % self._m} of it (samples {shown}{more})"

    def _sample(self, i: int) -> Sample:
        """What local micro-batch i is made of."""
        return sample_of(self._order, self._shares, self._start.cluster, i)


def _nothing() -> None:
    """Counts nothing."""
