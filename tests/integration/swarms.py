"""What the tests of whole swarms share: a small model and its data, and short ways to ask a swarm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ravnest_p2p as rn
from ravnest_p2p.client.swarm import Job, Swarm
from ravnest_p2p.core.types import JobPhase
from ravnest_p2p.network import gateway
from ravnest_p2p.testing.local_swarm import LocalSwarm, PeerProcess, wait_until

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


def small_request(**settings: Any) -> rn.JobRequest:
    """64 batches of 2 micro-batches of 8 samples, unless said otherwise."""
    chosen: dict[str, Any] = {
        "optimizer": rn.Adam(lr=3e-3),
        "passes": 4,
        "microbatch_size": 8,
        "microbatches_per_update": 2,
        "stages": 1,
        "clusters": 1,
    }
    return rn.JobRequest(small_model(), small_data(), **(chosen | settings))


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
