"""`ravnest inspect`: what it takes, what it prints, and what it says of files that are wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import ravnest_p2p as rn
from ravnest_p2p.cli import ravnest
from ravnest_p2p.cli.job_file import load_request
from ravnest_p2p.core.errors import ConfigError

TUPLE = """
import torch
from torch import nn

def made():
    model = nn.Sequential(*(m for _ in range(4) for m in (nn.Linear(16, 16), nn.ReLU())))
    return model, (torch.randn(2, 16),), nn.functional.mse_loss, (torch.randn(2, 16),)

def job():
    import ravnest_p2p as rn
    model, (x,), loss, (y,) = made()
    data = x.repeat(40, 1), y.repeat(40, 1)
    return rn.JobRequest(model, data, loss=loss, optimizer=rn.SGD(0.1), stages=3, microbatch_size=5)

def wrong():
    return 7

def branching():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 16)
        def forward(self, x):
            return x if self.layer(x).sum() > 0 else self.layer(x)
    return Branch(), (torch.randn(2, 16),), nn.functional.mse_loss, (torch.randn(2, 16),)
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "models.py"
    path.write_text(TUPLE)
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = ravnest.main(["inspect", *arguments])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_a_tuple_is_taken_and_shown(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, f"{file}:made", "--stages", "2")
    assert code == 0
    for word in ("Sequential", "equal eager PyTorch", "peer 1", "early step", "needed", "balance"):
        assert word in out


def test_a_saved_package_is_read_without_running_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8))
    x = torch.randn(2, 8)
    rn.capture(model, (x,), loss=torch.nn.functional.mse_loss, example_labels=(x,)).save(tmp_path / "saved")
    (tmp_path / "saved" / "job.py").write_text("raise SystemExit(9)")
    code, out, _ = run(capsys, str(tmp_path / "saved"))
    assert code == 0
    assert "saved" in out
    assert "not compared" in out
    (tmp_path / "saved" / "program.json").write_text("{}")
    code, _, err = run(capsys, str(tmp_path / "saved"))
    assert code == 3
    assert "program is refused" in err


def test_a_folder_cannot_be_submitted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"JobRequest\(model=Package.load"):
        load_request(str(tmp_path))


def test_a_request_brings_its_terms(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, file, "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["optimizer"], found["microbatch_size"], len(found["stages"])) == ("sgd", 5, 3)
    assert found["checked_against_eager"] is True
    assert found["whole"]["memory_bytes"]["optimizer"] == 0


def test_a_batch_too_small_for_the_split_is_noted(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    for stages, needed in (("3", ""), ("4", "microbatches_per_update=6 they would not")):
        _, out, _ = run(capsys, file, "--stages", stages)
        words = " ".join(out.split())
        assert ("stages would idle about 25 % of the time" in words) == bool(needed)
        assert needed in words
    _, out, _ = run(capsys, file, "--stages", "4", "--json")
    assert ["needs 4 micro-batches in flight" in line for line in json.loads(out)["advice"]] == [True]


def test_without_weights_and_with_memory(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    for function in ("made", "job"):
        code, out, _ = run(
            capsys,
            f"{file}:{function}",
            "--without-weights",
            "--memory",
            "1GB",
            "--memory",
            "400MB",
            "--json",
        )
        found = json.loads(out)
        assert code == 0
        assert found["checked_against_eager"] is False
        assert sorted(s["offered_bytes"] for s in found["stages"]) == [400_000_000, 1_000_000_000]


def test_recomputed_stages_are_marked(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, file, "--checkpoint", "always")
    assert code == 0
    assert "activations are" in out
    assert "recomputed" in out
    code, out, _ = run(capsys, file, "--json", "--checkpoint", "never")
    found = json.loads(out)
    assert found["checkpoint"] == "never"
    assert [stage["recompute"] for stage in found["stages"]] == [False] * 3
    code, out, _ = run(capsys, file)
    assert "activations are" not in out


def test_peers_and_a_picture(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peers = [
        {"peer": "12D3a", "memory_bytes": 2_000_000_000, "flops": 3e10, "up_bps": 1e9, "down_bps": 1e9},
        {"memory": "1GB"},
    ]
    (tmp_path / "peers.json").write_text(json.dumps(peers))
    picture = tmp_path / "split.svg"
    listed = str(tmp_path / "peers.json")
    code, out, _ = run(capsys, f"{file}:made", "--peers", listed, "--svg", str(picture))
    assert code == 0
    assert "12D3a" in out
    assert picture.read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.py"], "there is no file nowhere.py"),
        (["FILE:lost"], "has no function lost(); write one that returns a JobRequest, or a tuple (model,"),
        (["FILE:wrong"], "wrong() of FILE returned int; write one"),
        (["FILE:branching"], "torch.where"),
        (["FILE:made", "--memory", "1MB"], "no split over 1 peer fits"),
        (["FILE:made", "--memory", "much"], "is no size"),
        (["FILE:made", "--peers", "lost.json"], "cannot be read"),
        (["FILE:made", "--peers", "FILE"], "is not JSON"),
        (["FILE:made", "--svg", "/lost/folder/x.svg"], "x.svg cannot be written: No such file or directory"),
    ],
)
def test_mistakes_are_the_users_and_named(
    file: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *(a.replace("FILE", file) for a in arguments))
    assert code == 2
    assert said.replace("FILE", file) in err
    assert out == ""


@pytest.mark.parametrize("entry", ["[]", '{"memory": "1GB"}', '[{"flops": 1}]', '[{"memory_bytes": -1}]'])
def test_peers_that_make_no_sense(
    file: str, tmp_path: Path, entry: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "peers.json").write_text(entry)
    code, _, err = run(capsys, f"{file}:made", "--peers", str(tmp_path / "peers.json"))
    assert code == 2
    assert "peers.json" in err
