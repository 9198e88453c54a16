"""A job's losses outlive the daemon, whatever is in the file, and never grow without end."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ravnest_p2p.core.types import JobId, JobPhase
from ravnest_p2p.daemon import loss_curve
from ravnest_p2p.daemon.hosts import Hosts
from ravnest_p2p.daemon.jobbook import JobEntry
from ravnest_p2p.daemon.loss_curve import LossCurve, curve_path
from ravnest_p2p.daemon.peer_messages import OverviewAsked

JOB = JobId("a" * 64)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return curve_path(tmp_path / "jobs", JOB)


def test_losses_are_there_after_a_restart(path: Path) -> None:
    curve = LossCurve(path)
    assert curve.recent is None
    curve.add([(0, 2.5), (1, 1 / 3)])
    curve.add([(2, 1e-30)])
    assert LossCurve(path).shown(10) == curve.shown(10) == ((0, 2.5), (1, 1 / 3), (2, 1e-30))
    curve.add([(batch, 4.0) for batch in range(3, 40)])
    assert LossCurve(path).recent == 4.0


def test_what_is_trained_again_is_forgotten(path: Path) -> None:
    curve = LossCurve(path)
    curve.add([(batch, float(batch)) for batch in range(10)])
    curve.cut(4)
    curve.add([(4, 0.5)])
    assert LossCurve(path).shown(10) == ((0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0), (4, 0.5))


def test_a_long_curve_is_thinned(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_curve, "MAX_POINTS", 100)
    curve = LossCurve(path)
    for batch in range(1000):
        curve.add([(batch, float(batch))])
        assert len(path.read_text().splitlines()) <= 100
    for found in (curve, LossCurve(path)):
        batches = [batch for batch, _ in found.shown(1000)]
        assert 25 <= len(batches) <= 100
        assert batches[0] == 0
        assert max(b - a for a, b in pairwise(batches)) <= 32
    assert curve.shown(1000)[-1] == (999, 999.0)
    assert curve.recent == 989.5


def test_clusters_that_share_the_batches_are_thinned_alike(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that trains the odd ones alone."""
    monkeypatch.setattr(loss_curve, "MAX_POINTS", 100)
    curve = LossCurve(path)
    curve.add([(batch, 1.0) for batch in range(1, 1000, 2)])
    assert 25 <= len(curve.shown(1000)) <= 100


def test_what_is_no_loss_is_left_out(path: Path) -> None:
    curve = LossCurve(path)
    curve.add([(-1, 1.0), (1, math.nan)])
    assert not path.exists(), "a stage that is not the last keeps no file"
    curve.add([(1 << 60, 1.0), (2, math.inf), (3, 3.0)])
    assert curve.shown(10) == ((3, 3.0),)
    with path.open("a") as file:
        file.write("4\n5,x\nnan,1\n6,--\n7,1e999\n\x00\n\xff,1\n-8,1\n9,9.0\n10,1.2")
    assert LossCurve(path).shown(10) == ((3, 3.0), (9, 9.0)), "the last line was cut off"


def test_a_disk_that_cannot_be_written_costs_the_file_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "jobs").write_text("a file")
    curve = LossCurve(curve_path(tmp_path / "jobs", JOB))
    curve.add([(1, 1.0)])
    curve.cut(0)
    curve.add([(0, 2.0)])
    assert curve.shown(10) == ((0, 2.0),)
    assert "cannot be written" in caplog.text


def test_a_daemon_that_started_anew_tells_what_its_stage_saw(path: Path) -> None:
    LossCurve(path).add([(0, 2.0), (1, 1.0)])
    book = SimpleNamespace(jobs={JOB: JobEntry(outcome=JobPhase.DONE)})
    deps: Any = SimpleNamespace(book=book, jobs_folder=path.parent)
    (view,) = Hosts(deps).overview(OverviewAsked(job=JOB, losses=True)).stages
    assert (view.losses, view.loss) == (((0, 2.0), (1, 1.0)), 1.5)
    (view,) = Hosts(deps).overview(OverviewAsked(job=JOB)).stages
    assert (view.losses, view.loss) == ((), None)
