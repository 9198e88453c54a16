"""`ravnest` against a real gateway: each command, for people and in JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ravnest_p2p.cli.ravnest import main
from tests.integration.gateway_peer import GatewayPeer
from tests.integration.test_gateway_sdk import Tied, finish

pytestmark = pytest.mark.timeout(60)
JOB_FILE = """
import ravnest_p2p as rn
from tests.integration.test_gateway_sdk import Tied, dataset

def job():
    return rn.JobRequest(Tied(), dataset(), name="cli")
"""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GatewayPeer]:
    monkeypatch.setenv("RAVNEST_HOME", str(tmp_path / "home"))
    torch.set_num_threads(1)
    with GatewayPeer(tmp_path / "a") as peer:
        yield peer


@pytest.fixture
def ravnest(peer: GatewayPeer, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main([arguments[0], "--peer", peer.address, *arguments[1:]])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.fixture
def job(ravnest: Run, tmp_path: Path) -> str:
    (tmp_path / "train.py").write_text(JOB_FILE)
    code, out, _ = ravnest("submit", str(tmp_path / "train.py"), "--json", "--passes", "3", "--name", "mine")
    assert code == 0
    submitted: dict[str, Any] = json.loads(out)
    assert submitted["advice"] == []
    return str(submitted["job"])


def test_peers_jobs_and_status(peer: GatewayPeer, ravnest: Run, job: str) -> None:
    assert peer.backend.jobs_known[job]["name"] == "mine"
    assert json.loads(ravnest("peers", "--json")[1])[0]["peer"] == peer.peer_id
    assert peer.peer_id[-8:] in ravnest("peers")[1]
    assert json.loads(ravnest("epoch", "--json")[1])["term"] == 1
    shown = ravnest("epoch")[1]
    assert "epoch 7, term 1: led by" in shown
    for text in ("[red]cnn[/red]", f"0-5:…{peer.peer_id[-8:]}", "2.5000"):
        assert text in shown
    assert "7.0 by …thief was refused by 1: [b]a healthy cluster[/b]" in shown
    assert [known["job"] for known in json.loads(ravnest("jobs", "--json")[1])] == [job]
    assert job[:12] in ravnest("jobs")[1]
    assert json.loads(ravnest("status", job[:8], "--json")[1])["phase"] == "waiting"
    assert "0/10 batches" in ravnest("status", job[:8])[1]


def test_logs(ravnest: Run, job: str) -> None:
    assert [line["seq"] for line in json.loads(ravnest("logs", job, "--after", "3", "--json")[1])] == [4, 5]
    assert "line 5" in ravnest("logs")[1]
    assert ravnest("logs", "--limit", "-7")[1].count("line") == 1


def test_trace_shows_draws_and_writes(peer: GatewayPeer, ravnest: Run, job: str, tmp_path: Path) -> None:
    first = "0F0 100 10 0;>a0 110 10 64;<g0 150 0 0;0B0 160 40 0"
    last = "<a0 125 0 0;0F0 130 5 0;0B0 135 5 0;>g0 140 5 8"
    peer.backend.timeline = {
        "stages": [
            {"peer": f"peer number {s}", "generation": "1.0.a", "cluster": 0, "stage": s, "spans": text}
            for s, text in enumerate([first, last, "9"])
        ],
        "left_out": [],
    }
    out, svg = tmp_path / "trace.json", tmp_path / "timeline.svg"
    code, shown, said = ravnest("trace", job[:8], "--out", str(out), "--svg", str(svg))
    assert code == 0
    assert "50.0 %" in shown
    assert "gradient 0" in shown
    assert "ui.perfetto.dev" in shown
    assert "left out: …number 2: not a span" in said
    names = {event["name"] for event in json.loads(out.read_text())["traceEvents"]}
    assert names >= {"0F0", "0B0", "wait for gradient 0", ">a0", "<g0"}
    assert svg.read_text().startswith("<svg")
    summary = json.loads(ravnest("trace", job, "--json")[1])
    assert [stage["spans"] for stage in summary["stages"]] == [2, 2]
    assert list(summary["left_out"]) == ["peer number 2"]
    assert ravnest("trace", job, "--text")[1] == "stage 0  0F0 0B0\nstage 1  0F0 0B0\n"
    assert "--out trace.json" in ravnest("trace", job)[1]
    missing = str(tmp_path / "no" / "x")
    for wrong in (["f" * 64], [job, "--last", "0"], [job, "--last", "nan"], [job, "--out", missing]):
        assert ravnest("trace", *wrong)[0] == 2, wrong


def test_fetch_saves_the_model(peer: GatewayPeer, ravnest: Run, job: str, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    code, _, shown = ravnest("fetch", job[:8], "--out", str(out), "--timeout", "0.2")
    assert code == 2
    assert "is not done" in shown
    expected = finish(peer, job, Tied(), tmp_path)
    code, text, _ = ravnest("fetch", job[:8], "--out", str(out), "--json")
    assert code == 0
    assert json.loads(text)["tensors"] == len(expected)
    saved = load_file(out)
    assert saved.keys() == expected.keys()
    assert torch.equal(saved["down.weight"], saved["up.weight"])
    Tied().load_state_dict(saved)
    assert ravnest("fetch", job, "--out", str(tmp_path / "nowhere" / "m"))[0] == 2


def test_following_ends_with_the_job(peer: GatewayPeer, ravnest: Run, job: str) -> None:
    peer.change(lambda: peer.backend.jobs_known[job].update(phase="done", batches_done=10))
    code, out, _ = ravnest("status", job, "--follow")
    assert (code, out) == (0, "done  10/10 batches  loss –  0.0 samples/s\n")
    peer.change(lambda: peer.backend.jobs_known[job].update(phase="failed", reason="the loss is NaN"))
    code, out, err = ravnest("status", job, "--follow", "--json")
    assert code == 2
    assert json.loads(out)["phase"] == "failed"
    assert "the loss is NaN" in err


def test_cancel(peer: GatewayPeer, ravnest: Run, job: str) -> None:
    code, out, _ = ravnest("cancel", job[:8])
    assert (code, out) == (0, f"cancelled {job}\n")
    assert peer.backend.jobs_known[job]["phase"] == "cancelled"
    code, _, err = ravnest("cancel", "ffff")
    assert code == 2
    assert "no job begins with 'ffff'" in err


def test_a_dead_swarm_is_exit_code_3(
    peer: GatewayPeer, ravnest: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ravnest_p2p.client.swarm.connect.__kwdefaults__", {"timeout_s": 0.5}, raising=False)
    peer.stop()
    code, out, err = ravnest("peers")
    assert (code, out) == (3, "")
    assert err.startswith("ravnest: the swarm:")
