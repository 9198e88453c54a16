"""The peer's one libp2p host: the p2pd process, started, watched, restarted and taken down.

Problem: `hivemind.P2P.create` hides the flags that decide whether a peer behind a router can be reached,
starts a second daemon to check the identity, puts its sockets into /tmp, and leaves an orphan that keeps
the port when its parent is killed. Solution: start the shipped binary ourselves with every flag explicit,
in a session of its own (so Ctrl-C does not take the network away before the peer has said goodbye), with
a parent-death signal where the system has one and the janitor everywhere, and attach with
`P2P.replicate`, whose client socket goes into the peer's own runtime folder. The port is chosen once and
kept over restarts, so that known addresses stay true.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from hivemind.p2p import P2P
from hivemind.p2p.p2p_daemon_bindings.datastructures import PeerID
from hivemind.p2p.p2p_daemon_bindings.utils import ControlFailure, P2PDaemonError
from hivemind.utils.multiaddr import Multiaddr as HivemindMultiaddr
from multiaddr import Multiaddr

from ravnest_p2p.core.errors import ConfigError, LocalDaemonError, PeerUnreachableError
from ravnest_p2p.core.types import PeerId
from ravnest_p2p.network.addresses import dialable, ip_of, is_circuit, peer_of, transport_of, with_peer
from ravnest_p2p.network.janitor import Janitor
from ravnest_p2p.network.p2pd_config import P2PDConfig, PortKeeper, arguments
from ravnest_p2p.network.p2pd_waits import bounded

logger = logging.getLogger(__name__)

ATTACH_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 3.0
_STABLE_S = 60.0
_BACKOFF_FIRST_S = 0.2
_BACKOFF_LAST_S = 30.0
_LOG_BYTES = 2 * 1024 * 1024
_MAX_SOCKET_CHARS = 100

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None
"""Loaded before any fork: a child between fork and exec may not import or allocate much."""
_PR_SET_PDEATHSIG = 1

OnUp = Callable[[P2P], Awaitable[None]]
OnDown = Callable[[str], Awaitable[None]]


class P2PDaemon:
    """Runs p2pd: either `start`, `wait_exited` and `stop`, or all of it supervised by `run`."""

    def __init__(self, config: P2PDConfig, *, janitor: Janitor | None = None) -> None:
        self.config = config
        self.control_socket = config.runtime_dir / f"p2pd-{secrets.token_hex(4)}.sock"
        if len(str(self.control_socket)) > _MAX_SOCKET_CHARS:
            raise ConfigError(f"{config.runtime_dir} is too long a path for sockets; choose one under /tmp")
        self.restarts = 0
        self._janitor = janitor
        self._ports = PortKeeper(config)
        self._process: asyncio.subprocess.Process | None = None
        self._output: asyncio.Task[None] | None = None
        self._last_line = ""
        self._p2p: P2P | None = None

    @property
    def p2p(self) -> P2P:
        """The attached client.

        Raises:
            LocalDaemonError: p2pd is not running.
        """
        if self._p2p is None:
            raise LocalDaemonError("p2pd is not running")
        return self._p2p

    @property
    def peer_id(self) -> PeerId:
        """This peer's id, as p2pd says it."""
        return PeerId(self.p2p.peer_id.to_base58())

    @property
    def pid(self) -> int | None:
        """Process id of the running p2pd."""
        return None if self._process is None else self._process.pid

    async def start(self) -> P2P:
        """Start p2pd, wait until it serves, and attach.

        Raises:
            ConfigError: a port that the user chose is taken.
            LocalDaemonError: the binary is missing, stopped, or not ready in time; with its last words.
        """
        if self._process is not None:
            raise LocalDaemonError("p2pd is running already")
        self.control_socket.unlink(missing_ok=True)
        with self._ports.claim() as listen:
            p2p = await self._launch(listen)
        self._ports.keep()
        return p2p

    async def _launch(self, listen: tuple[str, ...]) -> P2P:
        command = arguments(self.config, self.control_socket, listen)
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            self._process = await asyncio.create_subprocess_exec(
                _binary(),
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=_environment(),
                start_new_session=True,
                preexec_fn=None if _libc is None else _DieWithParent(os.getpid()),
            )
        except OSError as error:
            raise LocalDaemonError(f"p2pd cannot be started: {error}; reinstall hivemind") from error
        if self._janitor is not None:
            self._janitor.watch(self._process.pid)
        self._output = asyncio.create_task(self._read_output(self._process, ready))
        try:
            await bounded(ready, self.config.startup_timeout_s)
            self._p2p = await attach(self.control_socket, self.config.runtime_dir)
        except asyncio.TimeoutError as error:
            await self.stop()
            raise LocalDaemonError(
                f"p2pd was not ready after {self.config.startup_timeout_s:g} s; "
                f"last words: {self._last_line!r}"
            ) from error
        except BaseException:
            await self.stop()
            raise
        return self._p2p

    async def wait_exited(self) -> str:
        """Wait until p2pd is gone; returns how it ended, in words."""
        if self._process is None or self._output is None:
            return "p2pd is not running"
        process = self._process
        code = await process.wait()
        await asyncio.wait([self._output], timeout=1.0)
        how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
        return f"p2pd {how}" + (f": {self._last_line}" if self._last_line else "")

    async def stop(self) -> None:
        """End p2pd and reap it, in a few seconds at most; whatever still waits for it fails at once."""
        p2p, self._p2p = self._p2p, None
        if p2p is not None:
            fail_pending_calls(p2p)
            await p2p.shutdown()
        process, self._process = self._process, None
        if process is None:
            return
        for end in (process.terminate, process.kill):
            with contextlib.suppress(ProcessLookupError):
                if process.returncode is None:
                    end()
            with contextlib.suppress(asyncio.TimeoutError):
                await bounded(process.wait(), _STOP_TIMEOUT_S)
                break
        if self._janitor is not None:
            self._janitor.forget(process.pid)
        if self._output is not None:
            await asyncio.wait([self._output], timeout=1.0)
            self._output.cancel()
            self._output = None
        self.control_socket.unlink(missing_ok=True)

    async def run(self, on_up: OnUp, on_down: OnDown) -> None:
        """Keep p2pd running until cancelled, which stops it; so say goodbye to others before cancelling.

        Args:
            on_up: called with the new client after each start: register handlers, start the directory. If it
                raises a `LocalDaemonError` or hivemind's own error, p2pd is started anew.
            on_down: called with the reason after each end of p2pd, before the next start, also where `on_up`
                had not finished.
        Raises:
            ConfigError: at the first start only; later ones are retried, with pauses growing up to 30 s.
        """
        pause_s = _BACKOFF_FIRST_S
        try:
            while True:
                started_s = time.monotonic()
                try:
                    p2p = await self.start()
                    reason = await self._serve(p2p, on_up)
                    await on_down(reason)
                except ConfigError as error:
                    if self.restarts == 0:
                        raise
                    reason = str(error)
                    self._ports.forget()
                except LocalDaemonError as error:
                    reason = str(error)
                await self.stop()
                if time.monotonic() - started_s > _STABLE_S:
                    pause_s = _BACKOFF_FIRST_S
                self.restarts += 1
                logger.warning("%s; starting it again in %.1f s", reason, pause_s)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _BACKOFF_LAST_S)
        finally:
            await self.stop()

    async def addresses(self) -> list[str]:
        """Full addresses (with /p2p/…) under which this peer can be dialled now, relayed ones included."""
        return await own_addresses(self.p2p)

    async def hosts_of(self, peer: PeerId) -> list[str]:
        """See the function of that name; empty while p2pd does not run."""
        return [] if self._p2p is None else await hosts_of(self._p2p, peer)

    async def _serve(self, p2p: P2P, on_up: OnUp) -> str:
        up = asyncio.ensure_future(on_up(p2p))
        exited = asyncio.create_task(self.wait_exited())
        try:
            await asyncio.wait((up, exited), return_when=asyncio.FIRST_COMPLETED)
            if exited.done():
                fail_pending_calls(p2p)
            else:
                try:
                    up.result()
                except (LocalDaemonError, P2PDaemonError, ControlFailure, ConnectionError) as error:
                    return f"p2pd does not serve: {error}"
            reason = await exited
            fail_pending_calls(p2p)
            return reason
        finally:
            exited.cancel()
            up.cancel()
            await asyncio.wait((up, exited), timeout=5.0)

    async def _read_output(self, process: asyncio.subprocess.Process, ready: asyncio.Future[None]) -> None:
        assert process.stdout is not None
        rest = b""
        with _BoundedLog(self.config.log_path) as log:
            while chunk := await process.stdout.read(16384):
                log.write(chunk)
                *lines, rest = (rest + chunk).split(b"\n")
                rest = rest[-4096:]
                for line in lines:
                    self._last_line = line[:400].decode(errors="replace").strip()
                    if line.startswith(b"Peer ID:") and not ready.done():
                        ready.set_result(None)
        if not ready.done():
            ready.set_exception(LocalDaemonError(f"p2pd stopped while starting: {self._last_line!r}"))


async def attach(
    control_socket: str | os.PathLike[str],
    runtime_dir: str | os.PathLike[str],
    timeout_s: float = ATTACH_TIMEOUT_S,
) -> P2P:
    """A client of a p2pd that runs already; its own socket goes into the runtime folder. Both paths absolute.

    Raises:
        LocalDaemonError: nothing serves at the socket.
    """
    prefix = f"/unix{Path(runtime_dir)}/"
    if len(prefix) > _MAX_SOCKET_CHARS - 25:
        raise ConfigError(f"{runtime_dir} is too long a path for sockets; choose one under /tmp")
    client: type[P2P] = type("AttachedP2P", (P2P,), {"_UNIX_SOCKET_PREFIX": prefix})
    address = HivemindMultiaddr(f"/unix{Path(control_socket)}")
    try:
        return await bounded(client.replicate(address), timeout_s)
    except (OSError, EOFError, asyncio.TimeoutError, P2PDaemonError, ControlFailure) as error:
        raise LocalDaemonError(f"p2pd does not serve at {control_socket}: {error!r}") from error


async def own_addresses(p2p: P2P, timeout_s: float = 5.0) -> list[str]:
    """Full addresses under which the host of this client can be dialled now."""
    try:
        peer_id, found = await bounded(p2p._client.identify(), timeout_s)
    except (OSError, EOFError, asyncio.TimeoutError, ControlFailure) as error:
        raise LocalDaemonError(f"p2pd does not say its addresses: {error!r}") from error
    peer = PeerId(peer_id.to_base58())
    return [with_peer(str(address), peer) for address in found if dialable(str(address))]


async def hosts_of(p2p: P2P, peer: PeerId, timeout_s: float = 2.0) -> list[str]:
    """IP addresses at which p2pd is connected to the peer, each once; those of relays are none.

    Raises:
        OSError: p2pd does not tell.
    """
    try:
        connected = await bounded(p2p.list_peers(), timeout_s)
    except (asyncio.TimeoutError, P2PDaemonError, EOFError) as error:
        raise ConnectionError(f"p2pd does not list its peers: {error!r}") from None
    addresses = [str(a) for one in connected if one.peer_id.to_base58() == peer for a in one.addrs]
    found = [ip_of(address) for address in addresses if not is_circuit(address)]
    return list(dict.fromkeys(ip for ip in found if ip is not None))


async def connect(p2p: P2P, address: str, timeout_s: float = 10.0) -> PeerId:
    """Connect to the peer at a full address, also one through a relay.

    Raises:
        PeerUnreachableError: no answer within the time, or a refusal.
    """
    peer = peer_of(address)
    if peer is None:
        raise PeerUnreachableError(f"{address} does not name a peer")
    # The multiaddr package encodes a relay's peer id as p2pd reads it; hivemind's own class does not.
    route = Multiaddr(transport_of(address))
    try:
        await bounded(p2p._client.connect(PeerID.from_base58(peer), [route]), timeout_s)
    except asyncio.TimeoutError as error:
        raise PeerUnreachableError(f"{address} did not answer within {timeout_s:g} s") from error
    except (OSError, EOFError, ControlFailure) as error:
        raise PeerUnreachableError(f"{address} cannot be reached: {error}") from error
    return peer


def fail_pending_calls(p2p: P2P) -> None:
    """Abort the unary calls that wait for a p2pd that is gone, and later ones; hivemind's wait for ever."""
    p2p._alive = False
    if p2p._client is None or p2p._client.control is None:
        return
    control = p2p._client.control
    waiting, control._pending_calls = control._pending_calls, _NoMoreCalls()
    for call in waiting.values():
        _fail(call)


class _NoMoreCalls(dict[Any, "asyncio.Future[Any]"]):
    """Stands in for a client's table of waiting calls: whoever would wait is told at once."""

    def __setitem__(self, call_id: Any, call: asyncio.Future[Any]) -> None:
        super().__setitem__(call_id, call)
        _fail(call)


def _fail(call: asyncio.Future[Any]) -> None:
    if not call.done():
        call.set_exception(P2PDaemonError("p2pd is gone"))


class _DieWithParent:
    """Runs in the child between fork and exec: die when the parent does (linux)."""

    def __init__(self, parent_pid: int) -> None:
        self._parent_pid = parent_pid

    def __call__(self) -> None:
        assert _libc is not None
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != self._parent_pid:
            os._exit(1)


class _BoundedLog:
    """The file that keeps p2pd's output: the last few megabytes, in two files."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab")  # noqa: SIM115

    def __enter__(self) -> _BoundedLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        if self._file.tell() > _LOG_BYTES:
            self._file.close()
            os.replace(self._path, self._path.with_suffix(".old"))
            self._file = open(self._path, "ab")  # noqa: SIM115
        self._file.write(data)
        self._file.flush()


def _binary() -> str:
    return str(files("hivemind.hivemind_cli") / "p2pd")


def _environment() -> dict[str, str]:
    """The owner's, with what it does not say: few messages, and a quarter of the cores.

    Go looks for work on every core that it may use: a third of what p2pd takes from those that compute.
    """
    cores = max(1, (os.cpu_count() or 1) // 4)
    return {"GOLOG_LOG_LEVEL": "error", "GOMAXPROCS": str(cores), **os.environ}
