"""A peer whose owner lets it compile does so behind its walls, and trains with what was compiled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ravnest_p2p as rn
from ravnest_p2p.daemon.toolchain import toolchain
from ravnest_p2p.testing.local_swarm import LocalSwarm
from tests.integration.swarms import CLASSES, FEATURES, small_data, wait_done, wait_lending

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not toolchain(), reason="needs a C++ compiler"),
]

TRAIN_S = 240.0


class Waves(nn.Module):
    """Many small operations: what gains for certain."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.door, self.head = nn.Linear(FEATURES, 16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.door(x)
        for _ in range(12):
            h = torch.tanh(h) * 0.5 + h
        return self.head(h)


def test_a_peer_that_may_compile_does_and_trains(tmp_path: Path, requester_home: Path) -> None:
    request = rn.JobRequest(
        Waves(), small_data(), passes=1, microbatch_size=8, microbatches_per_update=2, stages=1, clusters=1
    )
    with LocalSwarm(tmp_path, 1, more=["--epoch", "900", "--compile"]) as swarm:
        with rn.connect(swarm.bootstrap.address) as connection:
            wait_lending(connection, swarm.peers)
            wait_done(connection.submit_request(request), TRAIN_S)
        (log,) = swarm.peers[0].home.glob("jobs/worker-*.log")
        said = log.read_text()
        assert "system calls by seccomp, less those to start a compiler" in said
        assert "compiled a region: " in said
    assert not list(swarm.peers[0].home.glob("jobs/*/compiled"))
