"""One peer: everything that ravnestd is made of, put together, started and taken down.

What outlives p2pd stands here (identity, blobs, job book, hosts, log); what does not is a `Session`, and
the tasks that run on it. Starting is a list, stopping is the same list backwards, and every step of it is
bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from hivemind.p2p import P2P

from ravnest_p2p.core.ballot import ElectionConfig
from ravnest_p2p.core.errors import RavnestError
from ravnest_p2p.core.types import PeerId, Plan
from ravnest_p2p.daemon.backend import Backend
from ravnest_p2p.daemon.config import DaemonConfig
from ravnest_p2p.daemon.control import Control
from ravnest_p2p.daemon.gateway import Gateway
from ravnest_p2p.daemon.host_deps import HostDeps
from ravnest_p2p.daemon.hosts import Hosts
from ravnest_p2p.daemon.jobbook import JobBook
from ravnest_p2p.daemon.keeper import Keeper
from ravnest_p2p.daemon.logbook import Logbook
from ravnest_p2p.daemon.offer import Offer
from ravnest_p2p.daemon.peer_messages import (
    BALLOT,
    KEEP,
    LOGS,
    OVERVIEW,
    PLAN,
    REPLAN,
    TRACE,
    KeepAsked,
    LogsAsked,
    OverviewAsked,
    PlanPushed,
    ReplanAsked,
    TraceAsked,
    parse,
    plain,
)
from ravnest_p2p.daemon.session import Session
from ravnest_p2p.daemon.timelines import own_timeline
from ravnest_p2p.network.blobs import BlobStore
from ravnest_p2p.network.directory import Directory
from ravnest_p2p.network.identity import Identity
from ravnest_p2p.network.janitor import Janitor
from ravnest_p2p.network.p2pd import P2PDaemon
from ravnest_p2p.network.p2pd_config import P2PDConfig
from ravnest_p2p.network.p2pd_waits import bounded
from ravnest_p2p.network.records import CapabilityRecord

log = logging.getLogger(__name__)

CAPABILITY_TTL_S = 90.0
REFRESH_S = CAPABILITY_TTL_S / 3
FIRST_REFRESH_S = 2.0
FIRST_PROBE_S = 1.0
GOODBYE_TIMEOUT_S = 2.0
LOCAL_FILE = "local.json"


class Peer:
    """A whole ravnestd, without its command line."""

    def __init__(self, config: DaemonConfig) -> None:
        config.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.config = config
        self.identity = Identity.load_or_create(config.identity)
        self.logbook = Logbook()
        self.book = JobBook(config.home / "state.json")
        self.store = BlobStore(config.home / "blobs", config.disk_bytes)
        self.book.restore(self.store)
        self.offer = Offer(self.identity.peer_id, config)
        self.ready = asyncio.Event()
        self.control: Control | None = None
        self._session: Session | None = None
        self._directory: Directory | None = None
        self._plan: Plan | None = None
        self._gateway: Gateway | None = None
        self._hosts: Hosts | None = None
        self._deps: HostDeps | None = None
        self._tasks: list[asyncio.Task[Any]] = []
        self._janitor: Janitor | None = None
        self._p2pd: P2PDaemon | None = None
        self._running: asyncio.Task[None] | None = None

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    @property
    def jobs_folder(self) -> Path:
        return self.config.home / "jobs"

    async def run(self) -> None:
        """Serve until cancelled; leaves no process, socket or stale record behind."""
        logging.getLogger("ravnest_p2p").addHandler(self.logbook)
        self._janitor = Janitor.start()
        self._p2pd = P2PDaemon(self._p2pd_config(self._janitor.runtime_dir), janitor=self._janitor)
        measuring = asyncio.create_task(self._measure())
        try:
            await self._p2pd.run(self._up, self._down)
        finally:
            measuring.cancel()
            await asyncio.shield(self._close())

    async def addresses(self) -> list[str]:
        """Where this peer can be dialled now."""
        assert self._p2pd is not None
        return await self._p2pd.addresses()

    def _p2pd_config(self, runtime_dir: Path) -> P2PDConfig:
        c = self.config
        return P2PDConfig(
            identity_path=c.identity,
            runtime_dir=runtime_dir,
            log_path=c.home / "logs" / "p2pd.log",
            listen=c.listen,
            announce=c.announce,
            relays=c.relays,
            reachability=None if c.reachability == "auto" else c.reachability,
            relay_service=c.relay_service,
            port_mapping=c.port_mapping,
            ports_path=c.home / "ports.json",
        )

    async def _measure(self) -> None:
        try:
            await self.offer.measure()
        except RavnestError as error:
            log.error("this peer cannot lend compute: %s", error)
        else:
            await self._publish_offer()

    async def _up(self, p2p: P2P) -> None:
        """p2pd serves: stand everything on it."""
        c = self.config
        session = self._session = await Session.open(
            p2p,
            identity=self.identity,
            swarm=c.swarm,
            bootstrap=c.bootstrap,
            store=self.store,
            client_mode=c.reachability == "private",
            previous=self._directory,
        )
        self._directory = session.directory
        hosts = self._stand_hosts(session)
        control = self.control = Control(
            identity=self.identity,
            swarm=c.swarm,
            config=ElectionConfig(
                c.swarm, epoch_s=c.epoch_s, term_s=c.term_s, min_term_s=c.term_s / 4, grace_s=c.grace_s
            ),
            session=session,
            book=self.book,
            hosts=hosts,
            eligible=c.lend and c.reachability != "private",
            plan=self._plan,
        )
        backend = Backend(
            own=self.peer_id,
            swarm=c.swarm,
            session=session,
            control=control,
            hosts=hosts,
            book=self.book,
            logbook=self.logbook,
            jobs_folder=self.jobs_folder,
            addresses=self.addresses,
        )
        await self._serve_calls(session, hosts, control)
        self._gateway = Gateway(p2p, backend, self.store)
        await self._gateway.start()
        addresses = await self.addresses()
        hosts.addresses = tuple(addresses)
        self._write_local(addresses)
        for address in addresses:
            log.info("listening on %s", address)
        await self._publish_offer()
        self._tasks = [
            asyncio.create_task(control.run()),
            asyncio.create_task(self._refresh_offer(session, control)),
            asyncio.create_task(self._probe(session, control)),
        ]
        self.ready.set()

    def _stand_hosts(self, session: Session) -> Hosts:
        """Hosts outlive sessions: what they stand on is renewed in place."""
        if self._deps is None:
            assert self._janitor is not None
            assert self._p2pd is not None
            self._deps = HostDeps(
                own=self.peer_id,
                rpc=session.rpc,
                files=session.files,
                book=self.book,
                control_socket=str(self._p2pd.control_socket),
                runtime_folder=self._janitor.runtime_dir,
                jobs_folder=self.jobs_folder,
                memory_bytes=lambda: self.offer.memory_bytes,
                up_bps=lambda: self.offer.up_bps,
                threads=self.config.threads,
                device=lambda: self.offer.device,
                microbatch_flops=self.config.microbatch_flops,
                compiler=self.config.compiler,
                hosts_of=self._p2pd.hosts_of if self.config.direct else None,
                listen=self.config.listen,
                reachable=self._reachable,
                stale=self._stale,
                janitor=self._janitor,
                floor=self.book.adopted.fence if self.book.adopted is not None else None,
            )
            self._hosts = Hosts(self._deps)
        assert self._hosts is not None
        self._deps.rpc, self._deps.files = session.rpc, session.files
        return self._hosts

    async def _down(self, reason: str) -> None:
        """p2pd is gone: end what stood on it, and keep the rest."""
        log.error("%s", reason)
        self.ready.clear()
        if self._hosts is not None:
            self._hosts.interrupt(f"this peer's network daemon ended ({reason})")
        await self._end_session()

    async def _end_session(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        gateway, self._gateway = self._gateway, None
        session, self._session = self._session, None
        if self.control is not None:
            self._plan, self.control = self.control.plan, None
        if gateway is not None:
            with contextlib.suppress(asyncio.TimeoutError):
                await bounded(gateway.stop(), GOODBYE_TIMEOUT_S)
        if session is not None:
            with contextlib.suppress(asyncio.TimeoutError):
                await bounded(session.close(), GOODBYE_TIMEOUT_S)

    async def _close(self) -> None:
        (self.config.home / LOCAL_FILE).unlink(missing_ok=True)
        if self._hosts is not None:
            await self._hosts.close()
        await self._end_session()
        if self._p2pd is not None:
            await self._p2pd.stop()
        if self._janitor is not None:
            await asyncio.to_thread(self._janitor.close)
        self.identity.release()
        logging.getLogger("ravnest_p2p").removeHandler(self.logbook)

    async def say_goodbye(self) -> None:
        """Tell the directory that this peer is leaving; call before cancelling `run`."""
        if self._session is not None:
            with contextlib.suppress(asyncio.TimeoutError, RavnestError, OSError):
                record = CapabilityRecord(self.offer.capability(online=False), self.config.epoch_s)
                await bounded(self._session.directory.publish(record, CAPABILITY_TTL_S), GOODBYE_TIMEOUT_S)

    def _reachable(self, peer: PeerId, answers: bool) -> None:
        if self.control is not None:
            self.control.reachable(peer, answers)

    async def _stale(self, reason: str) -> None:
        if self.control is not None:
            await self.control.tell_stale(reason)

    async def _publish_offer(self) -> None:
        session = self._session
        if session is not None:
            record = CapabilityRecord(self.offer.capability(), self.config.epoch_s)
            await session.directory.publish(record, CAPABILITY_TTL_S)

    async def _refresh_offer(self, session: Session, control: Control) -> None:
        """Publish again before records expire; soon after the start, when the neighbours have been found."""
        pause_s = FIRST_REFRESH_S
        while True:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, REFRESH_S)
            try:
                await self._publish_offer()
                await session.files.refresh()
                await self._republish_jobs(session)
                if self._hosts is not None:
                    self._hosts.addresses = tuple(await self.addresses())
                    self._write_local(list(self._hosts.addresses))
            except (RavnestError, OSError, asyncio.TimeoutError) as error:
                log.warning("records could not be refreshed: %s", error)

    async def _republish_jobs(self, session: Session) -> None:
        """Jobs outlive their requester's connection: whoever knows one stores its record again."""
        for entry in list(self.book.jobs.values()):
            if entry.sealed and not entry.over:
                try:
                    await session.directory.republish(entry.sealed)
                except RavnestError as error:
                    log.debug("a job's record is no longer valid: %s", error)

    async def _probe(self, session: Session, control: Control) -> None:
        pause_s = FIRST_PROBE_S
        while True:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, self.config.probe_s)
            try:
                await self.offer.probe(session.prober, list(control.view.capabilities.values()))
            except RavnestError as error:
                log.debug("a link could not be measured: %s", error)

    async def _serve_calls(self, session: Session, hosts: Hosts, control: Control) -> None:
        keeper = Keeper(session, hosts, control, self.book)

        async def overview(_: PeerId, body: dict[str, Any]) -> dict[str, Any]:
            return plain(hosts.overview(parse(OverviewAsked, body)))

        async def plan(_: PeerId, body: dict[str, Any]) -> dict[str, Any]:
            await control.plan_pushed(parse(PlanPushed, body).sealed)
            return {}

        async def replan(peer: PeerId, body: dict[str, Any]) -> dict[str, Any]:
            control.stale(f"…{peer[-8:]} says: {parse(ReplanAsked, body).reason}", peer)
            return {}

        async def keep(peer: PeerId, body: dict[str, Any]) -> dict[str, Any]:
            await keeper.keep(peer, parse(KeepAsked, body))
            return {}

        async def logs(_: PeerId, body: dict[str, Any]) -> dict[str, Any]:
            asked = parse(LogsAsked, body)
            return {"lines": self.logbook.lines(asked.job, asked.after, asked.limit)}

        async def trace(_: PeerId, body: dict[str, Any]) -> dict[str, Any]:
            return plain(await asyncio.to_thread(own_timeline, self.jobs_folder, parse(TraceAsked, body)))

        async def ballot(_: PeerId, __: dict[str, Any]) -> dict[str, Any]:
            return plain(control.ballot())

        calls: dict[str, Callable[[PeerId, dict[str, Any]], Awaitable[dict[str, Any]]]] = {
            OVERVIEW: overview,
            PLAN: plan,
            REPLAN: replan,
            KEEP: keep,
            LOGS: logs,
            TRACE: trace,
            BALLOT: ballot,
        }
        for name, handler in calls.items():
            await session.rpc.serve(name, handler)

    def _write_local(self, addresses: list[str]) -> None:
        """Where the command line and the SDK on this computer find the daemon."""
        path = self.config.home / LOCAL_FILE
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"peer": self.peer_id, "pid": os.getpid(), "addresses": addresses}))
        temporary.replace(path)
