"""A peer whose owner lets it compile does so behind its walls, and trains."""

from __future__ import annotations

from pathlib import Path

import pytest

import ravnest_p2p as rn
from ravnest_p2p.daemon.toolchain import toolchain
from ravnest_p2p.testing.local_swarm import LocalSwarm
from tests.integration.swarms import small_request, wait_done, wait_lending

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not toolchain(), reason="needs a C++ compiler"),
]

TRAIN_S = 240.0


def test_a_peer_that_may_compile_does_and_trains(tmp_path: Path, requester_home: Path) -> None:
    with LocalSwarm(tmp_path, 1, more=["--epoch", "900", "--compile"]) as swarm:
        with rn.connect(swarm.bootstrap.address) as connection:
            wait_lending(connection, swarm.peers)
            wait_done(connection.submit_request(small_request(passes=1)), TRAIN_S)
        (log,) = swarm.peers[0].home.glob("jobs/worker-*.log")
        said = log.read_text()
        assert "system calls by seccomp, less those to start a compiler" in said
        # Whether so small a stage gains is for the trial to say; that it came to a trial is what counts.
        assert "compiled a region: " in said or "compiled, it is" in said
        assert not list(swarm.peers[0].home.glob("jobs/*/compiled"))
