"""From a request to trained stages without a network: what the user asked for is what the workers do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ravnest_p2p as rn
from ravnest_p2p.client.prepare import Prepared, prepare
from ravnest_p2p.core.averaging import ADAPTIVE, AVERAGINGS, INT8, NESTEROV, PARAMETERS
from ravnest_p2p.core.errors import CaptureError, ConfigError
from ravnest_p2p.core.planning.overlap import OVERLAPS
from ravnest_p2p.core.robust import CLIPPED
from ravnest_p2p.core.types import (
    MICROBATCH_FLOPS,
    ClusterPlan,
    Generation,
    JobPlan,
    OptimizerSpec,
    PeerId,
    StageAssignment,
)
from ravnest_p2p.daemon.messages import StartRun
from ravnest_p2p.daemon.worker.loading import Lent, averaging_of, load_stage
from ravnest_p2p.model.mixed import MixedComputation
from ravnest_p2p.network.records_manifest import parse_manifest
from ravnest_p2p.training import StageTrainer
from ravnest_p2p.training.means import Averaging
from ravnest_p2p.training.outer import OuterSpec
from tests.unit.training_models import Pipeline, classes, classifier

BATCH = classes(8, 0)
X, Y = torch.cat([b["x"] for b in BATCH]), torch.cat([b["y"] for b in BATCH])


def prepared(folder: Path, model: nn.Module | rn.Package | None = None, **settings: Any) -> Prepared:
    settings = {"microbatch_size": 5, "microbatches_per_update": 2, **settings}
    request = rn.JobRequest(model or classifier(0), (X, Y), **settings)
    return prepare(request, folder, lambda _: None)[0]


def loaded(job: Prepared, cuts: tuple[int, ...]) -> list[StageTrainer]:
    """What the workers of a plan with these cuts make of the files."""
    spec = parse_manifest(job.blobs[job.job].read_bytes())  # type: ignore[index]
    edges = [0, *cuts, len(spec.layers)]
    places = tuple(
        StageAssignment(PeerId(f"peer{s}"), edges[s], edges[s + 1], 0) for s in range(len(edges) - 1)
    )
    plan = JobPlan(job.job, Generation(1, 0, ""), (ClusterPlan(places, 4),))
    starts = [
        StartRun(
            job=job.job,
            spec=spec,
            plan=plan,
            cluster=0,
            stage=stage,
            program=str(job.blobs[spec.program]),
            weights=tuple(str(job.blobs[blob]) for blob in spec.weights_of(place.lo, place.hi)),
            pieces=(),
            folder="",
            control_socket="",
            runtime_folder="",
        )
        for stage, place in enumerate(places)
    ]
    lent = Lent(torch.device("cpu"), MICROBATCH_FLOPS, 1 << 30)
    return [
        load_stage(StartRun.model_validate_json(start.model_dump_json()), lent).trainer for start in starts
    ]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", [rn.Muon(), rn.LAMB(no_decay=("3.*",))], ids=["muon", "lamb"])
def test_a_job_trains_the_same_in_every_cut(tmp_path: Path, optimizer: OptimizerSpec, precision: str) -> None:
    job = prepared(tmp_path, optimizer=optimizer, precision=precision)
    assert (job.spec.optimizer, job.spec.precision) == (optimizer, precision)
    states: list[dict[str, Tensor]] = []
    data = [{"x0": b["x"], "y0": b["y"]} for b in BATCH]
    for cuts in [(), (2,), (1, 3)]:
        trainers = loaded(job, cuts)
        mixed = [isinstance(t._computation, MixedComputation) for t in trainers]
        assert all(mixed) == any(mixed) == (precision == "bf16")
        Pipeline(trainers, data, [0] * len(trainers), 2).run()
        states.append({n: v for t in trainers for n, v in {**t.params, **t.buffers}.items()})
        if optimizer.name == "muon":
            kept = {name: set(slots) for t in trainers for name, slots in t.optimizer_state().items()}
            buffered = {name for name, slots in kept.items() if slots == {"momentum_buffer"}}
            assert buffered == {"3.weight"}
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(state[name], states[0][name]) for name in state)


@pytest.mark.parametrize("correction", ["speculative", "stash", "none"])
def test_the_workers_treat_staleness_as_the_job_says(tmp_path: Path, correction: str) -> None:
    job = prepared(tmp_path, staleness_correction=correction)
    assert job.spec.staleness_correction == correction
    assert [trainer._correction for trainer in loaded(job, (2,))] == [correction] * 2


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_the_manifest_says_whether_rounds_overlap(tmp_path: Path, overlap: str) -> None:
    assert prepared(tmp_path, overlap=overlap).spec.overlap == overlap


@pytest.mark.parametrize("averaging", AVERAGINGS)
def test_the_workers_average_as_the_job_says(tmp_path: Path, averaging: str) -> None:
    outer = {} if averaging == PARAMETERS else {"outer": NESTEROV, "outer_lr": 0.7, "outer_momentum": 0.3}
    spec = prepared(tmp_path, averaging=averaging, seed=5, **outer).spec
    wanted = OuterSpec(NESTEROV, 0.7, 0.3) if outer else OuterSpec()
    assert averaging_of(spec) == Averaging(averaging, wanted, seed=5)


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({}, PARAMETERS),
        ({"means": CLIPPED}, PARAMETERS),
        ({"kappa": ADAPTIVE}, INT8),
        ({"outer": NESTEROV}, INT8),
        ({"kappa": ADAPTIVE, "means": CLIPPED}, INT8),
        ({"kappa": ADAPTIVE, "averaging": PARAMETERS}, PARAMETERS),
    ],
)
def test_differences_in_8_bits_where_a_job_leaves_it_open_and_they_serve(
    tmp_path: Path, asked: dict[str, str], sent: str
) -> None:
    assert prepared(tmp_path, **asked).spec.averaging == sent


def test_a_schedule_ends_with_the_job(tmp_path: Path) -> None:
    job = prepared(tmp_path, passes=3, optimizer=rn.AdamW(schedule="cosine"))
    assert job.spec.optimizer.schedule_updates == job.spec.total_batches == 12


def test_a_batch_too_small_for_the_stages_that_are_wanted_is_said_with_what_would_do(tmp_path: Path) -> None:
    said: list[str] = []
    request = rn.JobRequest(
        classifier(0), (X, Y), microbatch_size=5, microbatches_per_update=2, stages=3, staleness_bound=2
    )
    job, _ = prepare(request, _new(tmp_path / "a"), said.append)
    (line,) = job.advice
    assert "more than half of m = 2" in line
    assert line.endswith("microbatches_per_update=4 would do")
    assert f"note: {line}" in said
    for settings in ({"microbatches_per_update": 4}, {"stages": 0}, {"stages": 1}):
        better = replace(request, **settings)
        assert prepare(better, _new(tmp_path / str(settings)), said.append)[0].advice == ()


class MixesDtypes(nn.Module):
    """Writes a product into a float32 buffer by an operation that wants one dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x)
        with torch.no_grad():
            self.mean.lerp_(out.mean(0), 0.1)
        return out


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"precision": "fp8"}, ConfigError, "fp32 or bf16"),
        ({"staleness_correction": "nesterov"}, ConfigError, "speculative, stash, none"),
        ({"compression": "zip"}, ConfigError, "int4, auto, not 'zip'"),
        ({"overlap": "sometimes"}, ConfigError, "never, auto, always, not 'sometimes'"),
        ({"overlap": True}, ConfigError, "never, auto, always, not True"),
        ({"averaging": "gossip"}, ConfigError, "int4, sparse"),
        ({"kappa": 5}, ConfigError, "fixed or adaptive"),
        ({"means": "median"}, ConfigError, "mean, trimmed, clipped"),
        ({"means": "trimmed", "averaging": "sparse"}, ConfigError, "use 'int8'"),
        ({"outer": "adam", "averaging": "int8"}, ConfigError, "none, sgd, nesterov"),
        ({"outer": "sgd", "averaging": "parameters"}, ConfigError, "set averaging to 'differences'"),
        ({"outer_lr": 0.7}, ConfigError, "need an outer optimizer"),
        ({"outer": "sgd", "averaging": "int8", "outer_momentum": 1.0}, ConfigError, "outer_momentum in"),
        ({"average_momentum": True, "averaging": "sparse"}, ConfigError, "8 or 4 bits and more"),
        ({"average_momentum": True, "optimizer": rn.SGD(0.1)}, ConfigError, "SGD's is 0"),
        ({"optimizer": rn.Muon(), "model": nn.Linear(6, 4)}, ConfigError, "no hidden matrix"),
        ({"optimizer": rn.SGD(0.1, momentum=1.0)}, ConfigError, "momentum"),
        ({"optimizer": rn.SGD(0.1, schedule="step")}, ConfigError, "schedule_updates"),
        ({"precision": "bf16", "model": MixesDtypes()}, CaptureError, "bf16"),
    ],
    ids=[
        "precision",
        "correction",
        "compression",
        "overlap",
        "no word",
        "averaging",
        "kappa",
        "means",
        "means of few values",
        "outer",
        "outer of parameters",
        "rate of no outer",
        "outer momentum",
        "momentum in few bytes",
        "no momentum to average",
        "no matrix",
        "momentum",
        "step",
        "dtypes",
    ],
)
def test_what_cannot_be_trained_is_said_before_it_is_sent(
    tmp_path: Path, settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        prepared(tmp_path, **settings)


def test_a_saved_package_is_trained_as_its_model(tmp_path: Path) -> None:
    by_name = {"a": prepared(_new(tmp_path / "a"))}
    example = (X[:5],), nn.functional.cross_entropy, (Y[:5],)
    rn.capture(classifier(0), example[0], loss=example[1], example_labels=example[2]).save(tmp_path / "saved")
    by_name["b"] = prepared(_new(tmp_path / "b"), rn.Package.load(tmp_path / "saved"), name="Sequential")
    assert by_name["a"].spec.weights == by_name["b"].spec.weights
    assert by_name["a"].spec.program == by_name["b"].spec.program
    with pytest.raises(
        ConfigError, match=r"takes micro-batches of x0 float32 \[5, 6\].*gives x0 float32 \[4, 6\]"
    ):
        prepared(_new(tmp_path / "c"), rn.Package.load(tmp_path / "saved"), microbatch_size=4)


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder
