"""One stage of one generation, from its files to the last averaging.

The schedule (`core.pipeline`) decides, the trainer (`training`) computes, the neighbours and rings move
tensors; this module only carries events between them. The event loop does all I/O; one thread does all
torch work, one operation at a time, so neither ever needs a lock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ravnest_p2p.core.ledger import DataOrder, Shares
from ravnest_p2p.core.pipeline.schedule import Average, Backward, Forward, Op, Speculate, StageSchedule, Step
from ravnest_p2p.core.types import PeerId
from ravnest_p2p.daemon.messages import Listening, Message, NeedFields, PieceSaved, Report, StartRun
from ravnest_p2p.daemon.worker.averaging import RingExchange
from ravnest_p2p.daemon.worker.loading import load_stage
from ravnest_p2p.daemon.worker.meter import Meter
from ravnest_p2p.daemon.worker.neighbours import Neighbours
from ravnest_p2p.network.link_server import LinkServer
from ravnest_p2p.network.p2pd import attach
from ravnest_p2p.training import FieldReader, Forwarded, save_piece

REPORT_PERIOD_S = 0.5
FILES_TIMEOUT_S = 120.0
ENDPOINTS_TIMEOUT_S = 30.0

SEED_STRIDE = 0x9E3779B1
"""Spreads job seeds far apart, so that micro-batch numbers added to them never meet."""

Result = TypeVar("Result")


class Sample(NamedTuple):
    """One micro-batch of the data order: its global batch, its samples, the seed of its random nodes."""

    batch: int
    indices: list[int]
    seed: int


class StageRun:
    def __init__(self, start: StartRun, report: Callable[[Message], Awaitable[None]]) -> None:
        self._start = start
        self._report = report
        self._place = start.plan.clusters[start.cluster].stages[start.stage]
        self._cluster = start.plan.clusters[start.cluster]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compute")
        loop = asyncio.get_running_loop()
        self._files: asyncio.Future[dict[str, tuple[str, ...]]] = loop.create_future()
        self._nonces: dict[PeerId, str] = {}
        self._nonces_changed = asyncio.Event()
        self._arrived = asyncio.Event()
        self._tasks: list[asyncio.Task[Any]] = []
        self._neighbours: Neighbours | None = None
        self._server: LinkServer | None = None
        self._meter: Meter | None = None
        self._p2p: Any = None
        spec = start.spec
        self._order = DataOrder(
            spec.samples, spec.microbatch_size, spec.microbatches_per_update, seed=spec.seed
        )
        self._shares = Shares(
            start.plan.batches_done,
            spec.total_batches,
            tuple(cluster.updates_per_round for cluster in start.plan.clusters),
        )

    def fields_fetched(self, files: dict[str, tuple[str, ...]]) -> None:
        if not self._files.done():
            self._files.set_result(files)

    def endpoints_known(self, nonces: dict[PeerId, str]) -> None:
        self._nonces.update(nonces)
        self._nonces_changed.set()

    async def train(self) -> None:
        """Run the stage to the end of its data.

        Raises:
            RavnestError: what ended the run early; a lost link carries the lost peer as `peer`.
        """
        self._stage = await self._compute(lambda: load_stage(self._start))
        self._readers = await self._open_fields()
        self._schedule = self._make_schedule()
        await self._connect()
        self._meter = Meter(Path(self._start.folder), self._stage.trainer.version)
        work = asyncio.create_task(self._work())
        reports = asyncio.create_task(self._report_regularly())
        self._tasks += [work, reports]
        await self._first_failure(work)
        reports.cancel()
        await self._report(self._progress())
        self._meter.close()

    async def close(self) -> None:
        """End every task, link and thread of the run; never raises for what is already gone."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._neighbours is not None:
            await self._neighbours.close()
        if self._server is not None:
            await self._server.close()
        if self._p2p is not None:
            await self._p2p.shutdown()
        if self._meter is not None:
            self._meter.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _compute(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _make_schedule(self) -> StageSchedule:
        spec, stages = self._start.spec, self._cluster.stages
        updates = self._shares.local_updates(self._start.cluster)
        return StageSchedule(
            stage=self._start.stage,
            stages=len(stages),
            staleness=self._place.staleness,
            microbatches_per_update=spec.microbatches_per_update,
            microbatches=updates * spec.microbatches_per_update,
            updates_per_round=self._cluster.updates_per_round,
            rounds=self._shares.rounds,
            upstream_staleness=stages[self._start.stage - 1].staleness if self._start.stage else None,
        )

    async def _first_failure(self, work: asyncio.Task[None]) -> None:
        """Wait for the work's end; a task beside it that fails ends it with that error."""
        pending = set(self._tasks)
        while not work.done():
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        work.result()

    async def _open_fields(self) -> dict[str, FieldReader]:
        names = self._stage.program.data_inputs
        if not names:
            return {}
        await self._report(NeedFields(names=tuple(names)))
        files = await asyncio.wait_for(self._files, FILES_TIMEOUT_S)
        specs = {field.name: field for field in self._start.spec.fields}
        return {name: FieldReader(specs[name], [Path(p) for p in files[name]]) for name in names}

    async def _connect(self) -> None:
        """Open every link of the stage; each waits, bounded, for its other end."""
        start = self._start
        self._p2p = await attach(start.control_socket, Path(start.runtime_folder))
        self._server = LinkServer(self._p2p, start.plan.generation)
        nonce = await self._server.start()
        self._neighbours = Neighbours(
            self._server, self._cluster, start.cluster, start.stage, self._stage.program
        )
        trainer = self._stage.trainer
        self._rings = RingExchange(
            self._server,
            start.plan,
            start.cluster,
            start.stage,
            self._stage.averaged_names,
            trainer.params,
            trainer.buffers,
        )
        self._neighbours.expect()
        self._rings.expect()
        await self._report(Listening(nonce=nonce))
        await asyncio.gather(self._neighbours.dial(self._nonce_of), self._rings.dial(self._nonce_of))
        self._tasks += self._neighbours.start(self._activation_arrived, self._gradient_arrived)

    async def _nonce_of(self, peer: PeerId) -> str:
        while peer not in self._nonces:
            self._nonces_changed.clear()
            await asyncio.wait_for(self._nonces_changed.wait(), ENDPOINTS_TIMEOUT_S)
        return self._nonces[peer]

    def _activation_arrived(self, microbatch: int) -> None:
        self._schedule.activation_arrived(microbatch)
        self._arrived.set()

    def _gradient_arrived(self, microbatch: int) -> None:
        self._schedule.gradient_arrived(microbatch)
        self._arrived.set()

    async def _work(self) -> None:
        """Perform what the schedule says, until every update is applied and every round averaged."""
        while not self._schedule.done:
            op = self._schedule.next()
            if op is None:
                self._arrived.clear()
                await self._arrived.wait()
            else:
                await self._perform(op)
                self._schedule.finished(op)
        await self._neighbours.flush()

    async def _perform(self, op: Op) -> None:
        trainer = self._stage.trainer
        match op:
            case Forward():
                await self._forward(op)
            case Backward():
                await self._backward(op)
            case Speculate():
                await self._timed(trainer.speculate)
            case Step():
                await self._timed(trainer.step)
                self._meter.stepped(trainer.version)
            case Average():
                await self._average(op.round)

    async def _timed(self, work: Callable[[], Result]) -> Result:
        result, seconds = await self._compute(lambda: self._meter.timed(work))
        self._meter.worked(seconds)
        return result

    async def _forward(self, op: Forward) -> None:
        trainer = self._stage.trainer
        sample = self._sample(op.i)
        received = self._neighbours.take_activation(op.i)

        def work() -> Forwarded:
            data = {name: reader.rows(sample.indices) for name, reader in self._readers.items()}
            return trainer.forward(op.i, received, data, sample.seed, speculative=op.speculative)

        result = await self._timed(work)
        self._meter.forwarded(op.i, result.version)
        if result.loss is None:
            self._neighbours.send_activation(op.i, result.outputs)
        else:
            self._meter.loss(sample.batch, result.loss, self._start.spec.microbatches_per_update)

    async def _backward(self, op: Backward) -> None:
        trainer = self._stage.trainer
        gradients = self._neighbours.take_gradient(op.i)
        received_gradients = await self._timed(lambda: trainer.backward(op.i, gradients))
        self._meter.backed(op.i, trainer.version, self._start.spec.microbatch_size)
        self._neighbours.send_gradient(op.i, received_gradients)

    async def _average(self, r: int) -> None:
        """One round: the mean over clusters of what this stage holds, then its saved piece."""
        started_s = time.monotonic()
        await self._rings.average(r, self._shares.weights(r), self._compute)
        batches_done = self._shares.batches_after(r)
        self._meter.averaged(time.monotonic() - started_s, batches_done)
        trainer = self._stage.trainer
        path = Path(self._start.folder) / f"piece-{batches_done}.safetensors"
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
        await self._report(
            PieceSaved(
                path=str(path),
                lo=self._place.lo,
                hi=self._place.hi,
                batches_done=batches_done,
                version=trainer.version,
            )
        )

    def _sample(self, i: int) -> Sample:
        """What local micro-batch i is made of."""
        m = self._start.spec.microbatches_per_update
        batch = self._shares.batch(self._start.cluster, i // m)
        seed = (self._start.spec.seed * SEED_STRIDE + batch * m + i % m) % 2**63
        return Sample(batch, self._order.microbatch(batch, i % m), seed)

    async def _report_regularly(self) -> None:
        while True:
            await asyncio.sleep(REPORT_PERIOD_S)
            await self._report(self._progress())

    def _progress(self) -> Report:
        links = [*self._neighbours.links, *self._rings.links]
        sent, received = sum(k.bytes_sent for k in links), sum(k.bytes_received for k in links)
        return self._meter.report(sent, received)
