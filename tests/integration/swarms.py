"""What the tests of whole swarms share: a small model and its data, and short ways to ask a swarm."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

import ravnest_p2p as rn
from ravnest_p2p.client.swarm import Job, Swarm
from ravnest_p2p.core.errors import OurFault
from ravnest_p2p.core.types import JobPhase
from ravnest_p2p.network import gateway
from ravnest_p2p.testing.local_swarm import LocalSwarm, PeerProcess, wait_until
from ravnest_p2p.training.tensorfile import open_tensors

START_S, TRAIN_S = 90.0, 90.0
"""Bounds that only a swarm in trouble meets, also on a busy machine."""
SAMPLES = 256
FEATURES, CLASSES = 8, 4


def small_model(seed: int = 0, width: int = 16) -> nn.Module:
    """Six layers to cut between, BatchNorm, nothing random."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(FEATURES, width),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.Tanh(),
        nn.Linear(width, CLASSES),
    )


def small_data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, FEATURES, generator=generator)
    return x, x[:, :CLASSES].argmax(1)


class Mirror(nn.Module):
    """Leaves by the weight that it came in by, so that the first and the last stage share it."""

    def __init__(self, seed: int = 0, width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.door = nn.Linear(FEATURES, width)
        self.rooms = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.bias = nn.Parameter(torch.zeros(FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        h = self.rooms(torch.tanh(self.door(x)))
        return nn.functional.linear(h, self.door.weight.t(), self.bias)[:, :CLASSES]


def small_request(width: int = 16, **settings: Any) -> rn.JobRequest:
    """64 batches of 2 micro-batches of 8 samples, unless said otherwise."""
    chosen: dict[str, Any] = {
        "optimizer": rn.Adam(lr=3e-3),
        "passes": 4,
        "microbatch_size": 8,
        "microbatches_per_update": 2,
        "stages": 1,
        "clusters": 1,
    }
    return rn.JobRequest(small_model(width=width), small_data(), **(chosen | settings))


def status(connection: Swarm, job: str) -> dict[str, Any]:
    """The job's status as the peer said it, with what `Progress` leaves out."""
    found: dict[str, Any] = connection._portal.call(connection._operations.ask, gateway.Status(job=job))
    return found


def wait_lending(connection: Swarm, peers: list[PeerProcess], timeout_s: float = START_S) -> None:
    """Until each of these peers offers what it has measured, and answers."""
    wanted = {peer.peer for peer in peers}

    def lending() -> bool:
        found = {p["peer"] for p in connection.peers() if p["memory_bytes"] and p["answers"]}
        return wanted <= found

    wait_until(lending, timeout_s, f"{len(peers)} peers lend")


def wait_done(job: Job, timeout_s: float = TRAIN_S) -> dict[str, Any]:
    """The job's last status; a job that ends otherwise fails the test at once."""
    wait_until(lambda: job.status().over, timeout_s, f"{job} is over")
    found = status(job._swarm, job.id)
    assert found["phase"] == JobPhase.DONE.value, found["reason"]
    return found


def members(swarm: LocalSwarm, found: dict[str, Any]) -> list[PeerProcess]:
    """Processes of the peers that train the job, by the status `found`."""
    return [swarm.of(stage["peer"]) for cluster in found["clusters"] for stage in cluster["stages"]]


def job_folder(peer: PeerProcess, job: str) -> Path:
    """Where the peer's worker wrote what it did."""
    return peer.home / "jobs" / job[:16]


def saved_pieces(peer: PeerProcess, job: str) -> list[tuple[dict[str, Any], Path]]:
    """What the peer's own book says of saved pieces, each with its file."""
    book = json.loads((peer.home / "state.json").read_text())["jobs"].get(job, {"pieces": []})
    return [(p, peer.home / "blobs" / p["blob"][:2] / p["blob"]) for p in book["pieces"]]


class Remnants:
    """Processes, sockets and runtime files of a swarm, to see that none of them stays.

    Args:
        folder: of the homes; every process that names it, and each of its descendants, belongs to the swarm.
        runtime: where all of them were told to make their runtime folders.
    """

    def __init__(self, folder: Path, runtime: Path) -> None:
        self._names = (str(folder), str(runtime))
        self._runtime = runtime
        self._known: set[tuple[int, float]] = set()
        self._ports: set[int] = set()

    def note(self) -> None:
        """Take in what there is now."""
        for process in self._named():
            for one in (process, *_descendants(process)):
                try:
                    self._known.add((one.pid, one.create_time()))
                    self._ports |= {c.laddr.port for c in one.net_connections("inet") if c.status == "LISTEN"}
                except psutil.Error:
                    continue

    @property
    def noted(self) -> tuple[int, int]:
        """Processes and listening ports known."""
        return len(self._known), len(self._ports)

    def left(self) -> list[str]:
        """What is still there, for people."""
        known = [process for pid, born_s in self._known if (process := _alive(pid, born_s)) is not None]
        listening = {c.laddr.port for c in psutil.net_connections("inet") if c.status == "LISTEN"}
        return [
            *(f"process {_line(process)}" for process in {*known, *self._named()}),
            *(f"port {port}" for port in self._ports & listening),
            *(f"file {path}" for path in self._runtime.glob("ravnest-*")),
        ]

    def wait_gone(self, timeout_s: float) -> None:
        """Until nothing is left; names what is, if it takes too long."""
        try:
            wait_until(lambda: not self.left(), timeout_s, "nothing is left")
        except OurFault as error:
            raise AssertionError(f"{error}: {self.left()}") from None

    def _named(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            line = " ".join(process.info["cmdline"] or ())
            alive = process.pid != os.getpid() and process.info["status"] != psutil.STATUS_ZOMBIE
            if alive and any(name in line for name in self._names):
                found.append(process)
        return found


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _line(process: psutil.Process) -> str:
    try:
        return f"{process.pid}: {' '.join(process.cmdline())[:200]}"
    except psutil.Error:
        return f"{process.pid}, which has just ended"


def _alive(pid: int, born_s: float) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        ours = process.create_time() == born_s and process.status() != psutil.STATUS_ZOMBIE
        return process if ours else None
    except psutil.NoSuchProcess:
        return None


def final_tensors(
    peers: list[PeerProcess], job: str, batches: int, kinds: tuple[str, ...]
) -> dict[str, dict[str, Tensor]]:
    """Tensors of these kinds of the last saved round, by name and blob, from the peers' stores."""
    found: dict[str, dict[str, Tensor]] = {}
    for peer in peers:
        for piece, path in saved_pieces(peer, job):
            if piece["batches_done"] != batches:
                continue
            with open_tensors(path) as file:
                for key in file.names:
                    kind, _, name = key.partition("/")
                    tensor = file.mapped(key, file.spec(key))
                    if kind in kinds and tensor.is_floating_point():
                        found.setdefault(name, {})[piece["blob"]] = tensor.clone()
    return found
