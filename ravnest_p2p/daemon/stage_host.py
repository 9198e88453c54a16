"""This peer's part in one job: a worker, its files, and a watch on the co-members, from generation to
generation.

`obey` starts a generation, whatever ran before is ended first. From then on three things feed one
`RunMonitor` (`core.failover`): the worker's reports, the co-members' overviews, and the clock; its single
final action ends the generation. Nothing here decides; nothing here waits without a bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ravnest_p2p.core.errors import DivergedError, RavnestError, RemoteFault
from ravnest_p2p.core.failover import Action, Break, Done, RunMonitor, Stop
from ravnest_p2p.core.obedience import Obedience
from ravnest_p2p.core.types import Generation, JobId, JobPhase, JobPlan, JobSpec, PeerId
from ravnest_p2p.core.wording import bounded
from ravnest_p2p.daemon.comembers import CoMembers
from ravnest_p2p.daemon.host_deps import HostDeps
from ravnest_p2p.daemon.loss_curve import LossCurve, curve_path
from ravnest_p2p.daemon.messages import (
    Endpoints,
    FieldFiles,
    Listening,
    NeedFields,
    PieceSaved,
    Report,
    RunDone,
    RunFailed,
    StartRun,
    WorkerReport,
)
from ravnest_p2p.daemon.peer_messages import StageView
from ravnest_p2p.daemon.pieces import Pieces
from ravnest_p2p.daemon.stage_news import StageNews
from ravnest_p2p.daemon.timelines import job_folder
from ravnest_p2p.daemon.workers import WorkerProcess

log = logging.getLogger(__name__)

SILENCE_S = 5.0
START_UP_S = 60.0
TAKEN_OVER_S = 10.0
"""Until the plan of a higher generation that a co-member obeys should have come."""
ROUND_S = 5.0
"""For a round that is under way when its generation breaks: the next one goes on where it ends."""
EXPLAIN_S = 1.5
"""A little more than co-members need to ask one another."""
SHOWN_LOSSES = 1000


class StageHost:
    def __init__(self, job: JobId, deps: HostDeps) -> None:
        self.job = job
        self.phase = JobPhase.WAITING
        self.reason = ""
        self.losses = LossCurve(curve_path(deps.jobs_folder, job))
        self._diverged = ""
        self.pieces = Pieces(job, deps)
        self._deps = deps
        self._obedience = Obedience(deps.floor)
        self._plan: JobPlan | None = None
        self._place = (0, 0)
        self._nonce = ""
        self._report: Report | None = None
        self._news = StageNews(job)
        self._monitor: RunMonitor | None = None
        self._members: CoMembers | None = None
        self._outcome: asyncio.Future[Action] | None = None
        self._worker: WorkerProcess | None = None
        self._worker_task: asyncio.Task[None] | None = None
        self._run_task: asyncio.Task[None] | None = None
        self._warming: asyncio.Task[None] | None = None
        self._explaining: asyncio.Task[None] | None = None
        self._spawning = asyncio.Lock()
        self._fetches: set[asyncio.Task[None]] = set()
        self._spec: JobSpec | None = None

    @property
    def _folder(self) -> Path:
        """Where the worker writes: its trace, and pieces until they are in the store."""
        return job_folder(self._deps.jobs_folder, self.job)

    @property
    def took_part(self) -> bool:
        """Whether it has trained in some generation since the daemon's start."""
        return self._report is not None

    @property
    def generation(self) -> Generation | None:
        return self._plan.generation if self._plan is not None else None

    def view(self, *, losses: bool = False, plan: bool = False) -> StageView:
        """What others may know of this part; of a job that is over, how it ended."""
        entry = self._deps.book.entry(self.job)
        ended = entry.outcome if self._plan is None else None
        return StageView(
            job=self.job,
            generation=self.generation,
            plan=self._plan if plan else None,
            cluster=self._place[0],
            stage=self._place[1],
            phase=ended or self.phase,
            reason=(entry.reason if ended else self.reason)[:2000],
            nonce=self._nonce,
            report=self._report.model_copy(update={"losses": ()}) if self._report else None,
            pieces=tuple(entry.pieces),
            loss=self.losses.recent,
            losses=self.losses.shown(SHOWN_LOSSES) if losses else (),
        )

    async def obey(self, plan: JobPlan) -> None:
        """Take up a generation, unless it is the one that runs already or an older one."""
        if plan.generation == self.generation or not self._obedience.obey(plan.generation):
            return
        await self._end_run()
        self._plan = plan
        self._place = next(
            (c, s)
            for c, cluster in enumerate(plan.clusters)
            for s, stage in enumerate(cluster.stages)
            if stage.peer == self._deps.own
        )
        self.phase, self.reason, self._nonce, self._report = JobPhase.WAITING, "", "", None
        self._diverged, self._news = "", StageNews(self.job)
        self.losses.cut(plan.batches_done)
        self._monitor = RunMonitor(
            own=self._deps.own, plan=plan, now_s=time.monotonic(), start_up_s=START_UP_S, silence_s=SILENCE_S
        )
        self._outcome = asyncio.get_running_loop().create_future()
        log.info(
            "job %s: generation %s, cluster %d, stage %d, from batch %d",
            self.job[:8], plan.generation, *self._place, plan.batches_done,
        )  # fmt: skip
        self._run_task = asyncio.create_task(self._run(plan, self._monitor, self._outcome))

    async def leave(self, reason: str) -> None:
        """The plan has no place for this peer any more: give the worker up."""
        await self._end_run()
        if self._plan is not None and self.phase not in (JobPhase.DONE, JobPhase.CANCELLED, JobPhase.FAILED):
            self.phase, self.reason = JobPhase.WAITING, reason
        self._plan = None
        await self._end_worker()

    async def confirm(self) -> bool:
        """Ask the co-members whether the generation that seems to run well here still does."""
        if self._members is None or not self._runs_well:
            return False
        await self._members.ask_all()
        return self._runs_well

    @property
    def _runs_well(self) -> bool:
        """Whether nothing speaks against the generation, as far as is known here."""
        explaining = self._explaining is not None and not self._explaining.done()
        return self._monitor is not None and self._monitor.outcome is None and not explaining

    def stand_by(self) -> None:
        """Have a worker ready, so that taking over a stage does not wait for torch to be imported.

        A peer that lends no memory may be asked too: it keeps copies of pieces, and gets no stage.
        """
        idle = self._plan is None and (self._warming is None or self._warming.done())
        if idle and self._deps.memory_bytes():
            self._warming = asyncio.create_task(self._warm())

    def interrupt(self, reason: str) -> None:
        """What the run stands on is gone: break it."""
        if self._monitor is not None:
            self._judge(self._monitor.worker_state(JobPhase.FAILED, reason))

    async def close(self) -> None:
        """End everything at once; used when the daemon ends."""
        self.pieces.close()
        await self._end_run()
        await self._end_worker()

    async def _run(self, plan: JobPlan, monitor: RunMonitor, outcome: asyncio.Future[Action]) -> None:
        members = self._members = CoMembers(plan, self._deps, monitor, self._judge, self._nonces_known)
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(self._start(plan)),
            asyncio.create_task(members.watch()),
        ]
        try:
            await asyncio.wait({*tasks, outcome}, return_when=asyncio.FIRST_COMPLETED)
            while not outcome.done():
                failed = next((t for t in tasks if t.done() and t.exception() is not None), None)
                if failed is not None:
                    error = failed.exception()
                    text = str(error) if isinstance(error, RavnestError) else repr(error)
                    if not isinstance(error, RavnestError):
                        log.error("job %s: the host failed", self.job[:8], exc_info=error)
                    self._judge(monitor.worker_state(JobPhase.FAILED, text))
                else:
                    running = {t for t in tasks if not t.done()}
                    await asyncio.wait({*running, outcome}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self._finish(outcome.result())

    async def _finish(self, action: Action) -> None:
        match action:
            case Done():
                self.phase, self.reason = JobPhase.DONE, ""
                entry = self._deps.book.entry(self.job)
                entry.outcome = JobPhase.DONE
                self._deps.book.save()
                log.info("job %s: done", self.job[:8])
                await self._end_worker()
                await self._deps.stale(f"job {self.job[:8]} is done")
            case Break(reason=reason):
                await self._halt_worker(ROUND_S)
                self.phase, self.reason = JobPhase.BROKEN, reason
                if self._diverged:
                    # Whoever trains on from the newest round comes to the same place.
                    self.phase, self.reason = JobPhase.FAILED, self._diverged
                log.warning("job %s: generation %s is broken: %s", self.job[:8], self.generation, reason)
                await self._deps.stale(f"job {self.job[:8]}: {reason}")
            case Stop(reason=reason):
                self.phase, self.reason = JobPhase.WAITING, reason
                log.info("job %s: stops: %s", self.job[:8], reason)
                await self._halt_worker()
                await asyncio.sleep(TAKEN_OVER_S)
                self.phase, self.reason = JobPhase.BROKEN, f"{reason}, but no plan says so here"
                await self._deps.stale(f"job {self.job[:8]}: {self.reason}")

    async def _start(self, plan: JobPlan) -> None:
        """Fetch what the stage needs and hand it to a worker."""
        deps, files = self._deps, self._deps.files
        worker = asyncio.create_task(self._ready_worker())
        try:
            spec = self._spec = await files.manifest(self.job, plan.peers)
            deps.book.entry(self.job).spec = spec
            (program,) = await files.all_of(self.job, [spec.program], plan.peers)
            cluster, stage = self._place
            place = plan.clusters[cluster].stages[stage]
            wanted = [piece for piece in plan.pieces if piece.lo < place.hi and place.lo < piece.hi]
            pieces = [await files.piece(piece, plan.peers) for piece in wanted]
            initial = [] if pieces else spec.weights_of(place.lo, place.hi)
            weights = await files.all_of(self.job, initial, plan.peers)
        except BaseException:
            worker.cancel()
            raise
        ready = await worker
        await ready.send(
            StartRun(
                job=self.job,
                spec=spec,
                plan=plan,
                cluster=cluster,
                stage=stage,
                program=str(program),
                weights=tuple(map(str, weights)),
                pieces=tuple(map(str, pieces)),
                folder=str(self._folder),
                control_socket=deps.control_socket,
                runtime_folder=str(ready.sockets_folder),
                up_bps=deps.up_bps(),
            )
        )

    async def _warm(self) -> None:
        with contextlib.suppress(asyncio.TimeoutError, OSError):
            await self._ready_worker()

    async def _ready_worker(self) -> WorkerProcess:
        """An idle worker: the one of the generation before, if it lives, else a new one."""
        async with self._spawning:
            return await self._living_worker()

    async def _living_worker(self) -> WorkerProcess:
        if self._worker is None or not self._worker.alive:
            worker = self._worker = await self._deps.spawn_worker(self.job)
            self._deps.janitor.watch(worker.pid)
            self._worker_task = asyncio.create_task(self._follow(worker))
        await self._worker.wait_idle()
        return self._worker

    async def _follow(self, worker: WorkerProcess) -> None:
        """Hear a worker until it is gone."""
        async for report in worker.reports():
            try:
                await self._heard(worker, report)
            except RavnestError as error:
                log.warning("job %s: %s", self.job[:8], error)
                if self._monitor is not None:
                    self._judge(self._monitor.worker_state(JobPhase.FAILED, str(error)))
        code = await worker.end()
        self._deps.janitor.forget(worker.pid)
        if worker is self._worker:
            self._worker = None
            if self._monitor is not None:
                how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
                how = worker.fault or f"the worker process {how}"
                self._judge(self._monitor.worker_state(JobPhase.FAILED, how))

    async def _heard(self, worker: WorkerProcess, report: WorkerReport) -> None:
        monitor = self._monitor
        if monitor is None or (monitor.outcome is not None and not isinstance(report, PieceSaved)):
            return
        match report:
            case NeedFields(names=names):
                fetch = asyncio.create_task(self._fetch_fields(worker, names))
                self._fetches.add(fetch)
                fetch.add_done_callback(self._fetches.discard)
            case Listening(nonce=nonce):
                self._nonce = nonce
            case Report():
                self.phase = JobPhase.RUNNING
                self._news.hear(report, self._spec, self._plan, self._place)
                self._report = report
                self._judge(monitor.worker_state(JobPhase.RUNNING))
                self.losses.add(report.losses)
            case PieceSaved():
                assert self._plan is not None
                await self.pieces.saved(self._plan, report, self._folder)
                monitor.piece_saved(report.batches_done)
            case RunFailed(message=message, suspect=suspect):
                if report.error == DivergedError.__name__:
                    self._diverged = bounded(message)
                if suspect is None:
                    self._judge(monitor.worker_state(JobPhase.FAILED, message))
                else:
                    self._explaining = asyncio.create_task(self._explain_later(monitor, suspect, message))
            case RunDone():
                self.phase = JobPhase.DONE
                self._judge(monitor.worker_state(JobPhase.DONE))

    async def _explain_later(self, monitor: RunMonitor, suspect: PeerId, message: str) -> None:
        """A lost link is often the echo of a break elsewhere: the co-members may say the cause first."""
        await asyncio.sleep(EXPLAIN_S)
        gone = monitor.member_gone(suspect, message, time.monotonic())
        self._judge(gone or monitor.worker_state(JobPhase.FAILED, message))

    async def _fetch_fields(self, worker: WorkerProcess, names: Sequence[str]) -> None:
        assert self._spec is not None
        assert self._plan is not None
        fields = {field.name: field for field in self._spec.fields}
        try:
            unknown = [name for name in names if name not in fields]
            if unknown:
                raise RemoteFault(f"the program asks for data {unknown} that the manifest does not name")
            files = {
                name: tuple(
                    str(path)
                    for path in await self._deps.files.all_of(
                        self.job, [blob for blob, _ in fields[name].shards], self._plan.peers
                    )
                )
                for name in names
            }
            await worker.send(FieldFiles(files=files))
        except RavnestError as error:
            if self._monitor is not None:
                self._judge(self._monitor.worker_state(JobPhase.FAILED, f"data is missing: {error}"))

    async def _nonces_known(self, nonces: dict[PeerId, str]) -> None:
        if self._worker is not None and self._nonce and nonces:
            await self._worker.send(Endpoints(nonces=nonces))

    def _judge(self, action: Action | None) -> None:
        if action is not None and self._outcome is not None and not self._outcome.done():
            self._outcome.set_result(action)

    async def _end_run(self) -> None:
        if self._explaining is not None:
            self._explaining.cancel()
        task, self._run_task, self._monitor = self._run_task, None, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self._halt_worker()

    async def _halt_worker(self, round_s: float = 0.0) -> None:
        self._nonce = ""
        worker = self._worker
        if worker is None or not worker.alive:
            return
        if not await worker.stop_run(round_s) and worker is self._worker:
            # It had to be killed, and its end must not be taken for a failure of the generation to come.
            self._worker = None

    async def _end_worker(self) -> None:
        if self._warming is not None:
            self._warming.cancel()
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.end()
        if self._worker_task is not None:
            await asyncio.gather(self._worker_task, return_exceptions=True)
