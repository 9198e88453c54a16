"""Training in virtual time is the training of a real pipeline, and what the benchmark makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.async_penalty import gap
from benchmarks.penalty_runs import AT_ONCE, SYNCHRONOUS, Run, outcome
from ravnest_p2p.core.errors import PlanError
from ravnest_p2p.core.types import OptimizerSpec
from ravnest_p2p.testing.lossy_link import Faults
from ravnest_p2p.testing.pipeline_watch import InvariantViolation
from ravnest_p2p.testing.training_sim import train
from ravnest_p2p.training import StageTrainer
from tests.unit.training_models import ModuleComputation, Pipeline, classes, classifier, cut, trainers_of

ADAMW = OptimizerSpec("adamw", 1e-2, weight_decay=0.1, clip_norm=0.4)
BOUNDS, TAUS, M, UPDATES = (3, 6), (2, 1, 0), 4, 6


@pytest.mark.parametrize("correction", ["speculative", "stash"])
@pytest.mark.parametrize(
    "link", [{}, {"latency_s": 2.5}, {"faults": Faults(0.05, 0.05, 5.0, 1.0), "seed": 1}],
    ids=["at once", "slow", "broken"],
)  # fmt: skip
def test_timing_changes_no_bit(correction: str, link: dict) -> None:
    stages, batches = cut(classifier(3), BOUNDS), classes(M * UPDATES, 4)
    plain, simulated = (trainers_of(stages, ADAMW, m=M, staleness=TAUS, correction=correction) for _ in "ab")
    losses = Pipeline(plain, batches, TAUS, M).run().losses
    found = train(
        simulated,
        batches.__getitem__,
        staleness=TAUS,
        microbatches_per_update=M,
        updates=UPDATES,
        **link,
    )
    assert found.losses == losses
    for mine, other in zip(simulated, plain, strict=True):
        assert all(torch.equal(mine.params[name], other.params[name]) for name in other.params)


def test_the_window_is_what_hides_the_links_delay() -> None:
    """Two stages, one second of delay: τ = 2 keeps both busy, τ = 1 does not."""
    spans = []
    for tau in (1, 2):
        trainers = trainers_of(cut(classifier(3), (3,)), ADAMW, m=M, staleness=(tau, 0))
        batches = classes(M * UPDATES, 4)
        options = {"staleness": (tau, 0), "microbatches_per_update": M, "updates": UPDATES}
        spans.append(train(trainers, batches.__getitem__, **options, latency_s=1.0).makespan_s)
    assert spans[1] <= 2 * M * UPDATES + 6 < spans[0]


def test_a_trainer_of_another_version_is_found() -> None:
    (trainer,) = trainers_of([classifier(3)], ADAMW, m=1, staleness=(0,))
    trainer._version = 1
    with pytest.raises(InvariantViolation, match="1 updates"):
        train([trainer], classes(1, 0).__getitem__, staleness=(0,), microbatches_per_update=1, updates=1)


def test_an_unknown_correction_is_refused() -> None:
    with pytest.raises(PlanError, match="pipemare"):
        trainers_of([classifier(3)], ADAMW, m=1, staleness=(0,), correction="pipemare")


def test_without_correction_the_backward_goes_through_the_weights_of_its_time() -> None:
    """y = B(Ax), one step between the forward and the backward of micro-batch 1."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)).double()
    rate, x, g = 0.1, torch.randn(2, 5, 3).double(), torch.randn(2, 5, 2).double()
    trainer = StageTrainer(
        ModuleComputation(net), {n: p.detach().clone() for n, p in net.named_parameters()}, {},
        optimizer=OptimizerSpec("sgd", rate), microbatches_per_update=1, staleness=1, is_last=False,
        correction="none",
    )  # fmt: skip
    a, b = (p.detach().clone() for p in net.parameters())
    old = a
    trainer.speculate()
    for i in range(2):
        trainer.forward(i, (), {"x": x[i]}, 0, speculative=i == 1)
    for i in range(2):
        trainer.backward(i, [g[i]])
        trainer.step()
        a, b = a - rate * (g[i] @ b).T @ x[i], b - rate * g[i].T @ (x[i] @ old.T)
    torch.testing.assert_close(trainer.params["0.weight"].detach(), a)
    torch.testing.assert_close(trainer.params["1.weight"].detach(), b)


def test_the_benchmark_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.penalty_setting.HELD_OUT_WINDOWS", 16)
    monkeypatch.setattr("benchmarks.penalty_setting.WARMUP", 0)
    letters = torch.randint(96, (2000,), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("benchmarks.penalty_setting.text", lambda held_out: letters)
    run = Run(SYNCHRONOUS, 2, 2, 2, 0)
    first = outcome(run, tmp_path)
    assert outcome(run, tmp_path) == first
    assert len(list(tmp_path.iterdir())) == 1
    # One stage has nothing to be late for: the control is synchronous training up to rounding.
    whole = outcome(Run(SYNCHRONOUS, 1, 2, 2, 0), None)
    assert gap(outcome(Run(AT_ONCE, 1, 2, 2, 0), None).held_out, whole.held_out) == pytest.approx(0, abs=1e-3)
    assert gap(3.3, 3.0) == pytest.approx(10.0)
