"""A real swarm on this machine: one ravnestd process a peer, each with its own p2pd, identity and folder.

Used by the demo, by the integration tests, and by benchmarks, which put peers into network namespaces. All
processes are children of the caller; `stop` ends them in good order, `kill` as a power cut would; either way
nothing is left.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from ravnest_p2p.core.errors import OurFault

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 8.0
POLL_S = 0.05


class Host(NamedTuple):
    """Where a peer runs: the address that it listens on, and what to put before its command."""

    address: str = "127.0.0.1"
    prefix: tuple[str, ...] = ()


@dataclass(slots=True)
class PeerProcess:
    """One ravnestd and what belongs to it."""

    name: str
    home: Path
    arguments: list[str]
    host: Host = field(default_factory=Host)
    process: subprocess.Popen[bytes] | None = None
    local: dict[str, Any] = field(default_factory=dict)

    @property
    def peer(self) -> str:
        return str(self.local["peer"])

    @property
    def address(self) -> str:
        """Its first TCP address on its host."""
        return next(str(a) for a in self.local["addresses"] if "/tcp/" in a and self.host.address in a)

    @property
    def log_path(self) -> Path:
        return self.home / "ravnestd.log"

    def start(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / "local.json").unlink(missing_ok=True)
        with self.log_path.open("ab") as log:
            listen = ["--listen", f"/ip4/{self.host.address}/tcp/0"]
            daemon = [sys.executable, "-m", "ravnest_p2p.cli.ravnestd", "--home", str(self.home)]
            self.process = subprocess.Popen(
                [*self.host.prefix, *daemon, *listen, *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_end_with_caller,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Until it listens.

        Raises:
            OurFault: it ended, or took too long; with the end of its log.
        """
        path = self.home / "local.json"
        wait_until(lambda: path.exists() or self.ended, timeout_s, f"{self.name} listens")
        if self.ended:
            raise OurFault(f"{self.name} ended at its start: {self.last_words()}")
        self.local = json.loads(path.read_text())

    @property
    def ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def last_words(self, characters: int = 600) -> str:
        return self.log_path.read_text(errors="replace")[-characters:]

    def children(self, word: str) -> list[psutil.Process]:
        """Its live child processes whose command line holds the word ("p2pd", "daemon.worker")."""
        if self.ended:
            return []
        assert self.process is not None
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if word in " ".join(child.cmdline()):
                    found.append(child)
            except psutil.NoSuchProcess:
                continue
        return found

    def kill(self) -> None:
        """SIGKILL, as if the power had failed."""
        if self.process is not None and not self.ended:
            self.process.kill()
            self.process.wait()

    def interrupt(self) -> None:
        if self.process is not None and not self.ended:
            self.process.send_signal(signal.SIGINT)

    def wait_ended(self, deadline_s: float) -> None:
        if self.process is None:
            return
        try:
            self.process.wait(max(0.01, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()


class LocalSwarm:
    """A bootstrap peer that lends nothing, and `peers` peers that do. A context manager.

    Args:
        hosts: where they run, in turn; the bootstrap peer on the first.
        each: further arguments of single peers, in order; of two values for one option theirs counts.
    """

    def __init__(
        self,
        folder: Path,
        peers: int,
        *,
        memory: str = "1GB",
        swarm: str = "local",
        more: Sequence[str] = (),
        hosts: Sequence[Host] = (Host(),),
        each: Sequence[Sequence[str]] = (),
    ) -> None:
        self._common = ["--swarm", swarm, *more]
        self._lending = ["--memory", memory]
        self._hosts = hosts
        self.bootstrap = PeerProcess(
            "bootstrap", folder / "bootstrap", [*self._common, "--no-lend"], hosts[0]
        )
        self.peers = [
            PeerProcess(f"peer-{n}", folder / f"peer-{n}", [], hosts[n % len(hosts)]) for n in range(peers)
        ]
        self._own = dict(zip((peer.name for peer in self.peers), each, strict=False))

    @property
    def all(self) -> list[PeerProcess]:
        return [self.bootstrap, *self.peers]

    def start(self) -> None:
        """Start every peer; returns when all of them listen."""
        self.bootstrap.start()
        self.bootstrap.wait_ready()
        for peer in self.peers:
            peer.arguments = [*self._common, *self._lending, "--bootstrap", self.bootstrap.address]
            peer.arguments += self._own.get(peer.name, ())
            peer.start()
        for peer in self.peers:
            peer.wait_ready()

    def add(self) -> PeerProcess:
        """Start one more lending peer; returns when it listens."""
        number = len(self.peers)
        name, host = f"peer-{number}", self._hosts[number % len(self._hosts)]
        peer = PeerProcess(name, self.bootstrap.home.with_name(name), list(self.peers[0].arguments), host)
        self.peers.append(peer)
        peer.start()
        peer.wait_ready()
        return peer

    def interrupt(self) -> None:
        """Tell every peer to end, without waiting for it."""
        for peer in self.all:
            peer.interrupt()

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End every peer as Ctrl+C does; those that take too long are killed."""
        deadline_s = time.monotonic() + timeout_s
        self.interrupt()
        for peer in self.all:
            peer.wait_ended(deadline_s)

    def of(self, peer: str) -> PeerProcess:
        """The process of a peer id."""
        return next(p for p in self.all if p.local.get("peer") == peer)

    def __enter__(self) -> LocalSwarm:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
"""Loaded before any fork: a child between fork and exec may not import or allocate much."""


def _end_with_caller() -> None:
    """In the child: be told to end when the caller dies, also by SIGKILL (linux)."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def wait_until(condition: Callable[[], object], timeout_s: float, what: str) -> Any:
    """Poll until the condition holds; returns its value.

    Raises:
        OurFault: it did not within the time.
    """
    deadline_s = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline_s:
            raise OurFault(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(POLL_S)
    return value
