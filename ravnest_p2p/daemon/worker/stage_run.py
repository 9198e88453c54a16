"""One stage of one generation, from its files to its last averaging: opened, run, and closed again.

Files are loaded and strangers' programs validated in the compute thread; links wait, bounded, for their other
ends; then `StageLoop` runs. A task beside it that fails (a link, the reports) ends the run with its error.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from hivemind.p2p import P2P

from ravnest_p2p.core.types import PeerId
from ravnest_p2p.daemon.messages import Listening, Message, NeedFields, Report, StartRun
from ravnest_p2p.daemon.worker.averaging import RingExchange
from ravnest_p2p.daemon.worker.link_share import LinkShare
from ravnest_p2p.daemon.worker.loading import Lent, LoadedStage, averaging_of, load_stage
from ravnest_p2p.daemon.worker.neighbours import Neighbours
from ravnest_p2p.daemon.worker.stage_loop import StageLoop
from ravnest_p2p.network.direct import Direct
from ravnest_p2p.network.link_server import LinkServer
from ravnest_p2p.network.p2pd import attach
from ravnest_p2p.network.p2pd_waits import bounded
from ravnest_p2p.training import FieldReader

REPORT_PERIOD_S = 0.5
FILES_TIMEOUT_S = 300.0
ENDPOINTS_TIMEOUT_S = 60.0

Result = TypeVar("Result")


class StageRun:
    def __init__(
        self,
        start: StartRun,
        lent: Lent,
        report: Callable[[Message], Awaitable[None]],
        direct: Direct | None = None,
    ) -> None:
        self._start = start
        self._lent = lent
        self._report = report
        self._direct = direct
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="rounds")
        self._files: asyncio.Future[dict[str, tuple[str, ...]]] = asyncio.get_running_loop().create_future()
        self._nonces: dict[PeerId, str] = {}
        self._nonces_changed = asyncio.Event()
        self._loop: StageLoop | None = None
        self._closing: list[Callable[[], Awaitable[Any]]] = []
        self._tasks: list[asyncio.Task[Any]] = []

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
        start = self._start
        stage = await self._compute(lambda: load_stage(start, self._lent))
        readers = await self._open_fields(stage)
        loop = self._loop = StageLoop(start, stage, readers, self._compute, self._beside, self._report)
        try:
            neighbours, rings = await self._connect(stage)
            # What is here stays to the end of the run: the collector need not look through it at each turn.
            gc.collect()
            gc.freeze()
            receiving = neighbours.start(loop.activation_arrived, loop.gradient_arrived, loop.frame_sent)

            def progress() -> Report:
                links = [*neighbours.links, *rings.links]
                sent, received = sum(k.bytes_sent for k in links), sum(k.bytes_received for k in links)
                return loop.progress(sent, received, neighbours.rtt_after_s)

            working = asyncio.create_task(loop.run(neighbours, rings))
            reporting = asyncio.create_task(self._report_regularly(progress))
            self._tasks += [*receiving, working, reporting]
            await self._first_failure(working)
            reporting.cancel()
            await self._report(progress())
        finally:
            loop.close()

    async def end_round(self, within_s: float) -> None:
        """Wait for the round that is under way, if one is: its piece is where the next generation goes on."""
        if self._loop is not None:
            with contextlib.suppress(asyncio.TimeoutError):
                await bounded(self._loop.rounds.between.wait(), within_s)

    async def close(self) -> None:
        """End every task, link and thread of the run; never raises for what is already gone.

        Links are left without waiting for receipts: a run that is stopped has no use for them, and one that
        is done is stopped only once every member is done.
        """
        gc.unfreeze()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for close in reversed(self._closing):
            await asyncio.gather(close(), return_exceptions=True)
        for thread in (self._thread, self._aside):
            thread.shutdown(wait=False, cancel_futures=True)

    async def _compute(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _beside(self, work: Callable[[], Result]) -> Result:
        """What a round does while the compute thread goes on."""
        return await asyncio.get_running_loop().run_in_executor(self._aside, work)

    async def _first_failure(self, working: asyncio.Task[None]) -> None:
        """Wait for the work's end; a task beside it that fails ends it with that error."""
        pending = set(self._tasks)
        while not working.done():
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        working.result()

    async def _open_fields(self, stage: LoadedStage) -> dict[str, FieldReader]:
        names = stage.program.data_inputs
        if not names:
            return {}
        await self._report(NeedFields(names=tuple(names)))
        files = await bounded(self._files, FILES_TIMEOUT_S)
        specs = {field.name: field for field in self._start.spec.fields}
        return {name: FieldReader(specs[name], [Path(p) for p in files[name]]) for name in names}

    async def _connect(self, stage: LoadedStage) -> tuple[Neighbours, RingExchange]:
        """Open every link of the stage; each waits, bounded, for its other end."""
        start = self._start
        p2p: P2P = await attach(start.control_socket, Path(start.runtime_folder))
        self._closing.append(p2p.shutdown)
        server = LinkServer(p2p, start.plan.generation, self._direct)
        self._closing.append(server.close)
        nonce = await server.start()
        cluster, trainer = start.plan.clusters[start.cluster], stage.trainer
        neighbours = Neighbours(
            server,
            cluster,
            start.cluster,
            start.stage,
            stage.program,
            compression=start.spec.compression,
            seed=start.spec.seed,
        )
        self._closing.append(neighbours.close)
        rings = RingExchange(
            server,
            start.plan,
            start.cluster,
            start.stage,
            stage.averaged_names,
            stage.averaged_params,
            trainer.buffers,
            averaging_of(start.spec),
            LinkShare(start.up_bps),
        )
        neighbours.expect()
        rings.expect()
        await self._report(Listening(nonce=nonce))
        await asyncio.gather(neighbours.dial(self._nonce_of), rings.dial(self._nonce_of))
        return neighbours, rings

    async def _nonce_of(self, peer: PeerId) -> str:
        while peer not in self._nonces:
            self._nonces_changed.clear()
            await bounded(self._nonces_changed.wait(), ENDPOINTS_TIMEOUT_S)
        return self._nonces[peer]

    async def _report_regularly(self, progress: Callable[[], Report]) -> None:
        while True:
            await asyncio.sleep(REPORT_PERIOD_S)
            await self._report(progress())
