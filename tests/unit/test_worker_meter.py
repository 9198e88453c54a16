"""What a worker says of its memory is what it took."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from ravnest_p2p.core.errors import ConfigError
from ravnest_p2p.core.types import OptimizerSpec
from ravnest_p2p.daemon.messages import AHEAD_KEPT, Report
from ravnest_p2p.daemon.worker.meter import UPDATES_COUNTED, Meter
from ravnest_p2p.daemon.worker.resident import ResidentPeak
from ravnest_p2p.model import Requirements, StageComputation, Terms, stage_program
from ravnest_p2p.training import StageTrainer, choose_device
from tests.unit.test_recompute import ADAMW, batches, mixture
from tests.unit.training_models import copies

MB = 1_000_000


def trained(meter_folder: Path | None) -> tuple[StageTrainer, int]:
    """One stage over three updates, and the peak of its tensors if metered."""
    package = mixture()
    stage = stage_program(package.program, 0, len(package.program.layer_bounds))
    trainer = StageTrainer(
        StageComputation(stage),
        copies({name: package.weights[name] for name in stage.params}),
        copies({name: package.weights[name] for name in stage.buffers}),
        optimizer=ADAMW,
        microbatches_per_update=2,
        staleness=0,
        is_last=True,
    )
    meter = (
        Meter(meter_folder, 0, [*trainer.params.values(), *trainer.buffers.values()])
        if meter_folder
        else None
    )
    for i, batch in enumerate(batches(6)):
        works = [
            lambda i=i, batch=batch: trainer.forward(i, (), batch, i, speculative=False),
            lambda i=i: trainer.backward(i, ()),
            *([trainer.step] if i % 2 else []),
        ]
        for work in works:
            meter.timed(work) if meter else work()
        if meter and i % 2:
            meter.stepped(trainer.version)
    peak = 0
    if meter:
        peak = meter.report(0, 0).peak_tensor_bytes
        meter.timed(lambda: torch.zeros(10 * MB))
        assert meter.report(0, 0).peak_tensor_bytes == peak, "counted in the first updates only"
        meter.close()
    return trainer, peak


def test_the_peak_of_tensors_is_the_estimates_and_counting_changes_nothing(tmp_path: Path) -> None:
    plain, _ = trained(None)
    metered, peak = trained(tmp_path)
    assert all(torch.equal(plain.params[name], metered.params[name]) for name in plain.params)
    terms = Terms(OptimizerSpec("adamw", 1e-2), microbatches_per_update=2, staleness_bound=0)
    needs = Requirements(mixture(), terms)
    need = needs.need(0, len(needs.layers), exact=True)
    assert need.peak_bytes == pytest.approx(peak, rel=0.02)
    assert UPDATES_COUNTED < 3


def test_the_resident_peak_is_that_of_this_run() -> None:
    torch.ones(60 * MB // 4)
    peak = ResidentPeak()
    before = peak.bytes()
    held = torch.ones(120 * MB // 4)
    assert before + 100 * MB < peak.bytes() < before + 200 * MB
    del held
    assert peak.bytes() > before + 100 * MB
    assert ResidentPeak().bytes() < peak.bytes() - 80 * MB


def test_a_device_is_the_owners_choice() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device().type in ("cpu", "cuda", "mps")
    for name in ("tpu", "cpu:0", "cuda:", "cuda:-1", "cuda:x", "", "cuda:99"):
        with pytest.raises(ConfigError, match="device"):
            choose_device(name)


def test_what_compiling_takes_is_not_the_stages(tmp_path: Path) -> None:
    meters = [Meter(tmp_path, 0, compiling=compiling) for compiling in (False, True)]
    for version in range(1, UPDATES_COUNTED + 1):
        for meter in meters:
            meter.stepped(version)
    taken = torch.ones(100 * MB)
    plain, compiling = (meter.report(0, 0).peak_memory_bytes for meter in meters)
    assert plain - compiling > 0.9 * taken.nbytes
    for meter in meters:
        meter.close()


def test_what_was_in_flight_before_each_forward_is_counted(tmp_path: Path) -> None:
    """F0 F1 F2 B0 F3 B1 B2 f4 f5 B3 B4 B5 F6."""
    meter = Meter(tmp_path, 0)
    for i, done in enumerate([0, 0, 0, 1, 3, 3, 6]):
        for j in range(done):
            if j in meter._forward_versions:
                meter.backed(j, j // 4, 5, 2)
        meter.forwarded(i, 0, crossed=i in (4, 5))
    report = meter.report(0, 0)
    assert (report.ahead, report.crossed) == ((2, 2, 3), 2)
    assert report.in_flight == 1
    meter.close()


def test_however_many_are_ahead_the_counts_are_few(tmp_path: Path) -> None:
    meter = Meter(tmp_path, 0)
    for i in range(3 * AHEAD_KEPT):
        meter.forwarded(i, 0, crossed=False)
    ahead = meter.report(0, 0).ahead
    assert ahead == (1,) * (AHEAD_KEPT - 1) + (2 * AHEAD_KEPT + 1,)
    with pytest.raises(ValidationError):
        Report(ahead=(*ahead, 1))
    with pytest.raises(ValidationError):
        Report(ahead=(-1,))
    meter.close()


def test_a_batchs_loss_is_the_mean_of_what_counts(tmp_path: Path) -> None:
    meter = Meter(tmp_path, 0)
    for batch, losses in enumerate([(1.0, math.nan, 4.0), (math.nan,) * 3, (2.0, 2.0, 5.0)]):
        for loss in losses:
            meter.loss(batch, loss, 3)
    assert meter.report(0, 0).losses == ((0, 2.5), (2, 3.0))
    meter.close()
