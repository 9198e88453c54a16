"""What the command line shows: pictures of a job, one-line errors with exit codes, jobs from a file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ravnest_p2p.cli import live, output
from ravnest_p2p.cli.job_file import load_request
from ravnest_p2p.cli.ravnest import main
from ravnest_p2p.client.progress import Progress
from ravnest_p2p.core.errors import (
    ConfigError,
    FrameFormatError,
    JobError,
    OurFault,
    PeerUnreachableError,
)

PEER = "12D3KooWFNrdsdUdZRNVJSTjdWEYpruXAXhEeZG3MXnZxjVNtXSA"
STATUS: dict[str, Any] = {
    "job": "5a" * 32,
    "name": "digits [bold]",
    "phase": "running",
    "reason": "",
    "generation": "3.0.ab",
    "epoch": 3,
    "term": 0,
    "leader": PEER,
    "batches_done": 120,
    "total_batches": 400,
    "samples": 7680,
    "samples_per_s": 312.25,
    "loss": 0.41,
    "elapsed_s": 3725.0,
    "bytes_sent": 123_456_789,
    "clusters": [
        {
            "loss": 0.4,
            "updates": 60,
            "stages": [
                {
                    "peer": PEER,
                    "stage": stage,
                    "lo": 4 * stage,
                    "hi": 4 * stage + 4,
                    "phase": "training",
                    "version": 60 + stage,
                    "busy": 0.87,
                    "staleness": 1 - stage,
                    "window": 3 - 2 * stage,
                    "window_wanted": 8.2 - 7.2 * stage,
                    "staleness_limit": 2 - 2 * stage,
                    "staleness_bound": 8 - 8 * stage,
                    "ahead": [10, 20, 300, 0] if stage == 0 else [330],
                    "crossed": 82 * (1 - stage),
                    "in_flight": 2,
                    "bytes_sent": 5_000_000,
                    "peak_memory_bytes": 412_000_000 * (1 - stage),
                    "recompute": stage == 0,
                    "a_later_version_says_more": 1,
                }
                for stage in range(2)
            ],
        }
    ],
    "spares": [PEER],
    "losses": [[batch, 3.0 / (1 + batch)] for batch in range(120)],
}


def drawn(status: dict[str, Any] | Progress) -> str:
    console = Console(file=io.StringIO(), width=140)
    console.print(live.render(status))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_the_picture_says_everything_that_is_known() -> None:
    text = drawn(STATUS)
    wanted = ["digits [bold]", "running", "120/400 batches", "loss 0.4100", "312.2 samples/s", "1:02:05"]
    wanted += [
        "123.5 MB sent",
        "…xjVNtXSA",
        "4–8",
        "87 %",
        "2 of 8 ≤ 2 ≤ 8",
        "0 of 0 ≤ 0",
        "61",
        "spare",
        "█",
        "412.0 MB ↻",
        "▂▂█▁",
        "0/1",
    ]
    for part in wanted:
        assert part in text, part
    assert drawn(Progress.of(STATUS)) == text


def test_two_clusters_say_how_often_they_average_and_why() -> None:
    (one,) = STATUS["clusters"]
    stages = [stage | {"training_s": 100.0, "averaging_s": 4.0} for stage in one["stages"]]
    two = [one | {"stages": stages, "updates_per_round": kappa} for kappa in (9, 11)]
    assert "averag" not in drawn(STATUS), "one cluster has nobody to average with"
    assert "averaging: every 9 to 11 updates, 4 % of the time" in drawn(STATUS | {"clusters": two})
    found = {"kappa": 20, "kappa_why": "κ 10 → 20 by cost", "overlap": 3}
    text = drawn(STATUS | {"clusters": [one | found for one in two]})
    assert "every 20 updates, 4 % of the time, while training goes on for up to 3" in text
    assert "κ 10 → 20 by cost" in text


def test_advice_stands_under_the_table_as_it_is() -> None:
    rows = drawn(STATUS | {"advice": ["cluster 0, stage 0 [b]may", "cluster 1, stage 2"]}).splitlines()
    (first,) = [number for number, row in enumerate(rows) if "cluster 0, stage 0 [b]may" in row]
    assert "0/1" in rows[first - 1]
    assert "cluster 1, stage 2" in rows[first + 1]


def test_the_picture_of_a_job_that_waits_says_why() -> None:
    text = drawn({"job": "5a" * 32, "phase": "waiting", "reason": "2 peers are missing"})
    assert "waiting" in text
    assert "2 peers are missing" in text
    assert "loss –" in text


def test_a_line_says_the_same_without_a_terminal() -> None:
    assert live.line(Progress.of(STATUS)) == "running  120/400 batches  loss 0.4100  312.2 samples/s"


def test_a_curve_falls_as_its_values_do() -> None:
    curve = live.curve([1 / (1 + i) for i in range(200)], columns=20)
    assert len(curve) == 20
    assert list(curve) == sorted(curve, reverse=True)
    assert live.curve([2.0]) == "▁"
    assert live.curve([float("nan")]) == ""


@pytest.mark.parametrize(
    ("known", "text"),
    [
        ({}, "–"),
        ({"staleness_bound": 8}, "– ≤ 8"),
        ({"staleness_bound": 8, "staleness_limit": 8, "window": 3, "window_wanted": 4.0}, "2 of 3 ≤ 8"),
        ({"staleness_bound": 8, "staleness_limit": 2, "window": 3, "window_wanted": 9}, "2 of 8 ≤ 2 ≤ 8"),
        ({"window": 1, "window_wanted": 0.5}, "0 of 0"),
        ({"window": 1, "window_wanted": float("nan")}, "0 of 0"),
        ({"window": 1, "window_wanted": 1e300}, "0 of 9999"),
    ],
    ids=str,
)
def test_a_window_is_shown_with_what_it_should_be_and_may_be(known: dict[str, Any], text: str) -> None:
    (stage,) = (
        Progress.of(
            {"job": "5a", "phase": "running", "clusters": [{"stages": [{"peer": "p", "stage": 0, **known}]}]}
        )
        .clusters[0]
        .stages
    )
    assert live._ahead(stage) == text


def test_bars_are_counts_from_zero_on_and_few() -> None:
    assert live.bars([]) == ""
    assert live.bars([0, 0]) == "▁▁"
    assert live.bars([1, 1000, 500]) == "▂█▅"
    assert live.bars([1] * 64) == "█" * 9


@pytest.mark.parametrize("width", [100, 120])
def test_the_table_fits(width: int) -> None:
    """At 100 columns, one row for each stage, whole words."""
    console = Console(file=io.StringIO(), width=width)
    console.print(live.render(STATUS))
    rows = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    (head,) = [number for number, row in enumerate(rows) if "layers" in row]
    for title in (
        "stage",
        "peer",
        "state",
        "loss",
        "updates",
        "busy",
        "ahead",
        "in flight",
        "sent",
        "memory",
    ):
        assert title in rows[head], title
    assert ["0/0" in rows[head + 1], "0/1" in rows[head + 2]] == [True, True]
    assert "412.0 MB ↻" in rows[head + 1]


@pytest.mark.parametrize(
    "changed",
    [
        {"phase": "dancing"},
        {"job": None},
        {"batches_done": "many"},
        {"clusters": [{"stages": [{}]}]},
        {"losses": [1]},
    ],
    ids=str,
)
def test_a_status_of_wrong_types_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(FrameFormatError):
        Progress.of(STATUS | changed)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (JobError("no job\nbegins"), 2, "ravnest: no job begins\n"),
        (PeerUnreachableError("gone"), 3, "ravnest: the swarm: gone\n"),
        (OurFault("bug"), 1, "ravnest: a fault of ours: bug (RAVNEST_DEBUG=1 shows where)\n"),
        (
            ZeroDivisionError("0"),
            1,
            "ravnest: a fault of ours: ZeroDivisionError: 0 (RAVNEST_DEBUG=1 shows where)\n",
        ),
        (KeyboardInterrupt(), 130, "ravnest: interrupted\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_are_one_line_and_a_code(
    error: BaseException, code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert output.fail(error) == code
    assert capsys.readouterr().err == text


def test_tables_show_odd_values_as_they_are() -> None:
    console = Console(file=io.StringIO(), width=140)
    peers = [
        {"peer": "[red]p", "flops": "fast", "memory_bytes": 2e9, "devices": 7, "leader": True},
        {"peer": "q"},
    ]
    output.print_peers(console, peers)
    output.print_jobs(console, [Progress.of(STATUS)])
    output.print_logs(console, [{"time_s": "now", "text": "[b]x", "peer": PEER}])
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("[red]p", "fast", "2.0 GB", "leads", "digits [bold]", "120/400", "--:--:--", "[b]x"):
        assert part in text, part


JOB_FILE = """
import torch
from helper import width
import ravnest_p2p as rn

def job():
    return rn.JobRequest(torch.nn.Linear(width, 2), (torch.zeros(4, 3), torch.zeros(4)), name="from a file")

def wrong():
    return 7
"""


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    (tmp_path / "helper.py").write_text("width = 3\n")
    (tmp_path / "train.py").write_text(JOB_FILE)
    return tmp_path / "train.py"


def test_a_file_gives_a_request(job_file: Path) -> None:
    assert load_request(str(job_file)).name == "from a file"
    assert load_request(f"{job_file}:job").name == "from a file"


@pytest.mark.parametrize(
    ("suffix", "message"),
    [(":missing", "no function missing"), (":wrong", "returned int"), ("x", "there is no file")],
)
def test_a_file_without_a_request_is_the_users_fault(job_file: Path, suffix: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_request(f"{job_file}{suffix}")


def test_a_file_that_fails_is_the_users_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "train.py"
    path.write_text("1 / 0\n")
    assert main(["submit", str(path)]) == 2
    assert "failed: ZeroDivisionError" in capsys.readouterr().err


def test_no_daemon_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAVNEST_HOME", str(tmp_path))
    assert main(["peers"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert "no ravnestd runs on this computer" in shown.err


@pytest.mark.parametrize("command", ["peers", "submit", "jobs", "status", "logs", "trace", "cancel", "fetch"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert f"ravnest {command}" in text
    assert "--peer" in text
    assert "--json" in text
    assert "example:" in text
