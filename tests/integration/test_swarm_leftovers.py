"""Nothing stays behind a swarm, however it ends: no process, no socket, no runtime file, within 5 s."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import ravnest_p2p as rn
from ravnest_p2p.testing.local_swarm import LocalSwarm, wait_until
from tests.integration.swarms import START_S, TRAIN_S, Remnants, small_request, status, wait_lending

pytestmark = pytest.mark.timeout(180)

REPOSITORY = Path(__file__).parents[2]
END_S = 5.0


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where every peer and requester makes its temporary files; a short path, since sockets lie in it."""
    folder = Path(tempfile.mkdtemp(prefix="rv-", dir="/tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def swarm(tmp_path: Path, requester_home: Path, runtime: Path) -> Iterator[LocalSwarm]:
    with LocalSwarm(tmp_path / "homes", 2) as swarm:
        yield swarm


def end_all(swarm: LocalSwarm, number: signal.Signals) -> None:
    for peer in swarm.all:
        assert peer.process is not None
        peer.process.send_signal(number)


def test_a_terminated_idle_swarm_leaves_nothing(swarm: LocalSwarm, tmp_path: Path, runtime: Path) -> None:
    remnants = Remnants(tmp_path / "homes", runtime)
    remnants.note()
    processes, ports = remnants.noted
    assert processes >= 3 * 3, "ravnestd, p2pd and watcher of three peers"
    assert ports == 3
    assert remnants.left()
    end_all(swarm, signal.SIGTERM)
    remnants.wait_gone(END_S)
    assert [peer.process and peer.process.wait(1) for peer in swarm.all] == [0, 0, 0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_swarm_ended_in_training_leaves_nothing(
    number: signal.Signals, swarm: LocalSwarm, tmp_path: Path, runtime: Path
) -> None:
    with rn.connect(swarm.bootstrap.address) as connection:
        wait_lending(connection, swarm.peers)
        job = connection.submit_request(small_request(stages=2, passes=20_000))
        wait_until(lambda: status(connection, job.id)["batches_done"], TRAIN_S, "the job trains")
    remnants = Remnants(tmp_path / "homes", runtime)
    remnants.note()
    assert all(peer.children("daemon.worker") for peer in swarm.peers)
    end_all(swarm, number)
    remnants.wait_gone(END_S)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        pytest.param(["demo.py", "--passes", "2000"], "starting", id="while the bootstrap peer starts"),
        pytest.param(
            ["demo.py", "--passes", "2000"], "try in another terminal", id="while the peers find each other"
        ),
        pytest.param(["demo.py", "--passes", "2000"], "running ", id="in training"),
        pytest.param(["run.py", "gpt_sorter"], "capturing", id="while an example is captured"),
    ],
)
def test_ctrl_c_on_the_demo_leaves_nothing(
    script: list[str], said: str, tmp_path: Path, runtime: Path
) -> None:
    shutil.copytree(REPOSITORY / "examples", tmp_path / "examples")
    log = tmp_path / "demo.log"
    with log.open("wb") as output:
        demo = subprocess.Popen(
            [sys.executable, "-u", str(tmp_path / "examples" / script[0]), *script[1:]],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
    try:
        wait_until(lambda: said in log.read_text() or demo.poll() is not None, 2 * START_S, "it is so far")
        assert demo.poll() is None, log.read_text()
        remnants = Remnants(tmp_path, runtime)
        remnants.note()
        begun_s = time.monotonic()
        demo.send_signal(signal.SIGINT)
        assert demo.wait(END_S) == 130, log.read_text()
        remnants.wait_gone(max(0.1, begun_s + END_S - time.monotonic()))
        assert "Traceback" not in log.read_text()
    finally:
        demo.kill()
        demo.wait()
