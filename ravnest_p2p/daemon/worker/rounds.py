"""A stage's rounds of averaging: beside training or instead of it, each to its saved piece.

Problem: a round takes seconds to minutes, in which a stage could train. Solution: at a Snapshot the compute
thread copies what the next forward may change, which are buffers of a few kilobytes, and goes on. Parameters
and optimizer state change only at the next step: until then a thread beside it copies and drafts them, and a
step that comes sooner waits. The mean goes into the piece as soon as it is there, so that whatever happens
then the swarm has it, and into the weights at its Average, after a number of updates that the plan says
(`training.late_mean`).

    compute   … |5  S0  6F…  6B…  |6  7F…  7B…  |7  A0  8F…
    beside            copy, draft │ exchange  settle  save │
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ravnest_p2p.core.ledger import Shares
from ravnest_p2p.daemon.messages import Message, PieceSaved, StartRun
from ravnest_p2p.daemon.worker.averaging import LATE_LEAST_S, LATE_TIMES, Compute, RingExchange
from ravnest_p2p.daemon.worker.round_schedule import RoundSchedule, UpdatePace
from ravnest_p2p.training import StageTrainer
from ravnest_p2p.training.snapshot import draft_piece
from ravnest_p2p.training.tensorfile import TensorDraft


class Begun(NamedTuple):
    """What a Snapshot notes in the compute thread: buffers, and how many updates the weights have."""

    buffers: dict[str, Tensor]
    version: int


class Saved(NamedTuple):
    """A round whose mean is saved: how long it took, and the bytes of it that this stage sent."""

    number: int
    batches_done: int
    seconds: float
    sent_bytes: int


class Rounds:
    """Args: beside: runs work in a thread beside that of computing; saved: told of each piece.

    Attributes:
        schedule: which rounds are averaged.
        between: set but for the time from a round's begin until its piece is reported.
        failed: ends with the error of a round, whether training waits for it or not.
    """

    def __init__(
        self,
        start: StartRun,
        trainer: StageTrainer,
        shares: Shares,
        beside: Compute,
        report: Callable[[Message], Awaitable[None]],
        saved: Callable[[Saved], None],
    ) -> None:
        self._start = start
        self._place = start.plan.clusters[start.cluster].stages[start.stage]
        self._trainer = trainer
        self._shares = shares
        self.schedule = RoundSchedule(start, shares)
        self._pace = UpdatePace(trainer.version)
        self._beside = beside
        self._report = report
        self._saved = saved
        self._copied = threading.Event()
        self._copied.set()
        self._running: asyncio.Task[None] | None = None
        self.between = asyncio.Event()
        self.between.set()
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # -- in the compute thread

    def snapshot(self) -> Begun:
        """Note what the next forward may change. No step before all else is copied (`wait_copied`)."""
        self._copied.clear()
        return Begun(
            {name: buffer.clone() for name, buffer in self._trainer.buffers.items()}, self._trainer.version
        )

    def wait_copied(self) -> None:
        """Before a step: until the round that began last has its copy of the weights, or the run is over."""
        self._copied.wait()

    # -- in the event loop

    def begin(self, number: int, rings: RingExchange, begun: Begun | None = None) -> None:
        """Begin a round that is averaged; `begun` where training goes on beside it."""
        if begun is None:
            rings.share.free()
        else:
            rings.share.bound()
        self.between.clear()
        self._running = asyncio.create_task(self._run(number, rings, begun))
        self._running.add_done_callback(self._ended)

    async def take_in(self, number: int, rings: RingExchange, compute: Compute) -> None:
        """At an Average: begin the round if it has not; wait until its mean is there, and take it in."""
        stood_s = time.monotonic()
        if self._running is not None:
            rings.share.free()
            await self._running
            await compute(rings.take_in)
        else:
            self.begin(number, rings)
            assert self._running is not None
            await self._running
        self._running = None
        self._pace.stood(time.monotonic() - stood_s)

    def close(self) -> None:
        """Give up what is under way, and let a step that waits go on."""
        self._copied.set()
        if self._running is not None:
            self._running.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.between.set()
        if task.cancelled() or self.failed.done():
            return
        if (error := task.exception()) is not None:
            self.failed.set_exception(error)

    async def _run(self, number: int, rings: RingExchange, begun: Begun | None) -> None:
        due, batches_done, drafting = self.schedule.due(number), self._shares.batches_after(number), None
        assert due is not None, "a round that is skipped is not begun"
        buffers = self._trainer.buffers if begun is None else begun.buffers
        begun_s, sent_before = time.monotonic(), rings.sent_bytes
        try:
            weights = self._shares.weights_over(due.first, due.number)
            await rings.gather(weights, buffers, self._beside)
            if begun is not None:
                drafting = asyncio.ensure_future(self._draft(begun, batches_done))
            version = self._trainer.version if begun is None else begun.version
            pace = self._pace.since(version)
            late_s = max(LATE_LEAST_S, LATE_TIMES * pace.seconds)
            lost = await rings.exchange(number, pace.update_s, late_s)
            self.schedule.numbers.own(number, rings.numbers)
            if drafting is not None:
                await rings.settle(await drafting, self._beside)
            else:
                await self._beside(rings.scatter)
                now = Begun(self._trainer.buffers, self._trainer.version)
                drafting = asyncio.ensure_future(self._draft(now, batches_done))
                await self._beside(partial(rings.save, await drafting))
            await self._beside((await drafting).finish)
        finally:
            self._copied.set()
            if drafting is not None:
                drafting.add_done_callback(_discard)
        seconds = time.monotonic() - begun_s
        self._saved(Saved(number, batches_done, seconds, rings.sent_bytes - sent_before))
        await self._report(
            PieceSaved(
                path=str(self._path(batches_done)),
                lo=self._place.lo,
                hi=self._place.hi,
                batches_done=batches_done,
                version=version,
            )
        )
        if lost:
            # The round is saved, without what the lost member alone held of its cluster; training is over.
            raise lost[0]

    async def _draft(self, begun: Begun, batches_done: int) -> TensorDraft:
        """The piece, with the weights as they are now."""
        trainer = self._trainer

        def draft() -> TensorDraft:
            return draft_piece(
                self._path(batches_done),
                trainer.params,
                begun.buffers,
                trainer.optimizer_state(),
                version=begun.version,
                batches_done=batches_done,
            )

        made: TensorDraft = await self._beside(draft)
        self._copied.set()
        return made

    def _path(self, batches_done: int) -> Path:
        return Path(self._start.folder) / f"piece-{batches_done}.safetensors"


def _discard(drafting: asyncio.Future[Any]) -> None:
    if not drafting.cancelled() and drafting.exception() is None:
        drafting.result().discard()
