"""A stage at work: what the schedule says next is computed, sent, averaged, measured.

The schedule (`core.pipeline`) decides, the trainer (`training`) computes, the neighbours and rings move
tensors; this loop only carries events between them. One thread does all torch work, one operation at a time,
so nothing here needs a lock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ravnest_p2p.core.ledger import DataOrder, Shares
from ravnest_p2p.core.pipeline.schedule import (
    Average,
    Backward,
    Forward,
    Op,
    Speculate,
    StageSchedule,
    Step,
)
from ravnest_p2p.daemon.messages import Message, PieceSaved, Report, StartRun
from ravnest_p2p.daemon.worker.averaging import RingExchange
from ravnest_p2p.daemon.worker.loading import LoadedStage
from ravnest_p2p.daemon.worker.meter import Meter
from ravnest_p2p.daemon.worker.neighbours import Neighbours
from ravnest_p2p.training import FieldReader, Forwarded, save_piece

SEED_STRIDE = 0x9E3779B1
"""Spreads job seeds far apart, so that micro-batch numbers added to them never meet."""

Compute = Callable[[Callable[[], Any]], Awaitable[Any]]


class Sample(NamedTuple):
    """One micro-batch of the data order: its global batch, its samples, the seed of its random nodes."""

    batch: int
    indices: list[int]
    seed: int


def shares_of(start: StartRun) -> Shares:
    """Which batches each cluster of the generation trains."""
    kappas = tuple(cluster.updates_per_round for cluster in start.plan.clusters)
    return Shares(start.plan.batches_done, start.spec.total_batches, kappas)


class StageLoop:
    """Args: compute: runs work in the compute thread; report: tells ravnestd."""

    def __init__(
        self,
        start: StartRun,
        stage: LoadedStage,
        readers: Mapping[str, FieldReader],
        compute: Compute,
        report: Callable[[Message], Awaitable[None]],
    ) -> None:
        self._start = start
        self._trainer = stage.trainer
        self._readers = readers
        self._compute = compute
        self._report = report
        self._arrived = asyncio.Event()
        self._m = start.spec.microbatches_per_update
        self._shares = shares_of(start)
        self._order = DataOrder(start.spec.samples, start.spec.microbatch_size, self._m, seed=start.spec.seed)
        self._place = start.plan.clusters[start.cluster].stages[start.stage]
        self._schedule = self._make_schedule()
        held = [*stage.trainer.params.values(), *stage.trainer.buffers.values()]
        self._meter = Meter(Path(start.folder), stage.trainer.version, held, stage.compiling)

    def activation_arrived(self, microbatch: int) -> None:
        self._schedule.activation_arrived(microbatch)
        self._arrived.set()

    def gradient_arrived(self, microbatch: int) -> None:
        self._schedule.gradient_arrived(microbatch)
        self._arrived.set()

    async def run(self, neighbours: Neighbours, rings: RingExchange) -> None:
        """Until every update is applied and every round averaged."""
        while not self._schedule.done:
            op = self._schedule.next()
            if op is None:
                self._arrived.clear()
                await self._arrived.wait()
            else:
                await self._perform(op, neighbours, rings)
                # Before the event loop gets to send what was queued: no answer may overtake this.
                self._schedule.finished(op)
        await neighbours.flush()

    def progress(self, bytes_sent: int, bytes_received: int) -> Report:
        """What was measured so far; losses are handed out once."""
        place = self._place
        about = {
            "lo": place.lo,
            "hi": place.hi,
            "staleness_bound": place.staleness,
            "recompute": place.recompute,
            "last": self._start.stage + 1 == len(self._start.plan.clusters[self._start.cluster].stages),
        }
        return self._meter.report(bytes_sent, bytes_received).model_copy(update=about)

    def close(self) -> None:
        self._meter.close()

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
        )

    async def _perform(self, op: Op, neighbours: Neighbours, rings: RingExchange) -> None:
        match op:
            case Forward():
                await self._forward(op, neighbours)
            case Backward():
                await self._backward(op, neighbours)
            case Speculate():
                await self._timed(self._trainer.speculate)
            case Step():
                await self._timed(self._trainer.step)
                self._meter.stepped(self._trainer.version)
            case Average():
                await self._average(op.round, rings)

    async def _timed(self, work: Callable[[], Any]) -> Any:
        result, seconds = await self._compute(lambda: self._meter.timed(work))
        self._meter.worked(seconds)
        return result

    async def _forward(self, op: Forward, neighbours: Neighbours) -> None:
        sample = self._sample(op.i)
        received = neighbours.take_activation(op.i)

        def work() -> Forwarded:
            data = {name: reader.rows(sample.indices) for name, reader in self._readers.items()}
            return self._trainer.forward(op.i, received, data, sample.seed, speculative=op.speculative)

        result = await self._timed(work)
        self._meter.forwarded(op.i, result.version)
        if result.loss is None:
            neighbours.send_activation(op.i, result.outputs)
        else:
            self._meter.loss(sample.batch, result.loss, self._m)

    async def _backward(self, op: Backward, neighbours: Neighbours) -> None:
        gradients = neighbours.take_gradient(op.i)
        received_gradients = await self._timed(lambda: self._trainer.backward(op.i, gradients))
        self._meter.backed(op.i, self._trainer.version, self._start.spec.microbatch_size)
        neighbours.send_gradient(op.i, received_gradients)

    async def _average(self, number: int, rings: RingExchange) -> None:
        """One round: the mean over clusters of what this stage holds, then its saved piece."""
        started_s = time.monotonic()
        await rings.average(number, self._shares.weights(number), self._compute)
        batches_done = self._shares.batches_after(number)
        self._meter.averaged(time.monotonic() - started_s, batches_done)
        path = Path(self._start.folder) / f"piece-{batches_done}.safetensors"
        trainer = self._trainer
        await self._compute(
            lambda: save_piece(
                path,
                trainer.params,
                trainer.buffers,
                trainer.optimizer_state(),
                version=trainer.version,
                batches_done=batches_done,
            )
        )
        saved = PieceSaved(
            path=str(path),
            lo=self._place.lo,
            hi=self._place.hi,
            batches_done=batches_done,
            version=trainer.version,
        )
        await self._report(saved)

    def _sample(self, i: int) -> Sample:
        """What local micro-batch i is made of."""
        batch = self._shares.batch(self._start.cluster, i // self._m)
        seed = (self._start.spec.seed * SEED_STRIDE + batch * self._m + i % self._m) % 2**63
        return Sample(batch, self._order.microbatch(batch, i % self._m), seed)
