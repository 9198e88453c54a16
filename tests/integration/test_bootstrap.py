"""The entry point of a bootstrap peer, started as its unit and its container do, and asked who it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ravnest_p2p as rn
from ravnest_p2p.testing.local_swarm import PeerProcess, wait_until

RUN = Path(__file__).resolve().parents[2] / "bootstrap" / "run"
END_S = 10.0


def test_starts_by_its_environment_answers_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAVNEST_HOME", str(tmp_path / "requester"))
    environment = {
        **os.environ,
        "RAVNESTD": str(Path(sys.executable).with_name("ravnestd")),
        "RAVNEST_HOME": str(tmp_path / "peer"),
        "RAVNEST_LISTEN": "/ip4/127.0.0.1/tcp/0 /ip4/127.0.0.1/udp/0/quic-v1",
        "RAVNEST_SWARM": "bootstrap-test",
        "RAVNEST_EPOCH": "30",
    }
    peer = PeerProcess("bootstrap", tmp_path / "peer", [])
    peer.home.mkdir()
    with peer.log_path.open("wb") as log:
        peer.process = subprocess.Popen(
            [str(RUN)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
        )
    try:
        peer.wait_ready()
        with rn.connect(peer.address) as swarm:
            hello = swarm.hello()
            assert hello["swarm"] == "bootstrap-test"
            assert any("/quic-v1/" in address for address in hello["addresses"])
            (own,) = wait_until(swarm.peers, END_S, "the bootstrap peer has published itself")
            assert own["memory_bytes"] == 0
            assert own["reachability"] == "public"
        peer.process.terminate()
        assert peer.process.wait(END_S) == 0
    finally:
        peer.kill()
