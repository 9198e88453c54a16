"""Clipping by the norm of the whole model: which stage knows what of which update, and that it is torch's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ravnest_p2p as rn
from ravnest_p2p.core.errors import ConfigError
from ravnest_p2p.core.optimizers import check_optimizer
from ravnest_p2p.core.pipeline.global_norm import GlobalNorm
from ravnest_p2p.core.pipeline.schedule import closed_form
from ravnest_p2p.core.types import OptimizerSpec
from ravnest_p2p.model import StageComputation
from ravnest_p2p.model.capture import capture
from ravnest_p2p.model.split import split_program
from ravnest_p2p.testing.lossy_link import Faults
from ravnest_p2p.testing.training_sim import train
from ravnest_p2p.training import StageTrainer
from ravnest_p2p.training.clipping import Clipping
from ravnest_p2p.training.optimizer import StageOptimizer, early_step
from tests.unit.training_models import Pipeline, classes, classifier, copies, cut, trainers_of

SGD = OptimizerSpec("sgd", 0.1, clip_norm=0.05, clip_scope="model")
ADAMW = OptimizerSpec("adamw", 1e-2, weight_decay=0.1, clip_norm=0.2, clip_scope="model")
BOUNDS, M, UPDATES = (3, 6), 4, 6
COUNT = M * UPDATES


class Known:
    """Of each stage and update: its own norm, and that of the others, by which it stepped."""

    def __init__(self, trainers: Sequence[StageTrainer], monkeypatch: pytest.MonkeyPatch) -> None:
        self.own: dict[tuple[int, int], float] = {}
        self.others: dict[tuple[int, int], float] = {}
        for s, trainer in enumerate(trainers):
            monkeypatch.setattr(trainer._clipping, "clip", self._noting(s, trainer))

    def _noting(self, s: int, trainer: StageTrainer) -> Callable[..., None]:
        clip = trainer._clipping.clip

        def noting(u: int, params: Any) -> None:
            self.own[s, u] = float(trainer._clipping.norm(u, {}))
            self.others[s, u] = trainer._clipping.others(u)
            clip(u, params)

        return noting


@pytest.mark.parametrize("taus", [(0, 0, 0), (2, 1, 0), (4, 2, 0), (3, 3, 0), (4, 4, 0)])
def test_what_a_stage_knows_follows_from_indices(
    taus: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers = trainers_of(cut(classifier(3), BOUNDS), ADAMW, m=M, staleness=taus)
    known = Known(trainers, monkeypatch)
    Pipeline(trainers, classes(COUNT, 4), taus, M).run()
    assert len(known.own) == 3 * UPDATES
    for (s, u), others in known.others.items():
        after = [known.own[r, u] for r in range(s + 1, 3)]
        versions = [closed_form((u + 1) * M - 1, taus[r], M).forward for r in range(s)]
        assert versions == [u - 1 if u and tau == M else u for tau in taus[:s]]
        before = [known.own[r, v - 1] for r, v in enumerate(versions) if v > 0]
        assert others == pytest.approx(math.hypot(*before, *after), rel=1e-12), (s, u)
    assert all(known.others[0, u] > 0 for u in range(UPDATES)), "the first stage knows all"


@pytest.mark.parametrize(
    "link", [{"latency_s": 2.5}, {"faults": Faults(0.05, 0.05, 5.0, 1.0), "seed": 1}], ids=["slow", "broken"]
)
def test_timing_changes_no_bit(link: dict[str, Any]) -> None:
    batches, taus = classes(COUNT, 4), (2, 1, 0)
    plainly, simulated = (
        trainers_of(cut(classifier(3), BOUNDS), ADAMW, m=M, staleness=taus) for _ in range(2)
    )
    Pipeline(plainly, batches, taus, M).run()
    numbers = {"staleness": taus, "microbatches_per_update": M, "updates": UPDATES}
    train(simulated, batches.__getitem__, **numbers, **link)
    for mine, other in zip(simulated, plainly, strict=True):
        assert all(torch.equal(mine.params[name], other.params[name]) for name in other.params)


def clipped_by_torch(net: nn.Module, batches: Sequence[Mapping[str, Tensor]], spec: OptimizerSpec) -> float:
    """One update of the whole model; returns the norm before."""
    for batch in batches:
        (nn.functional.cross_entropy(net(batch["x"]), batch["y"]) / len(batches)).backward()
    assert spec.clip_norm is not None
    norm = torch.nn.utils.clip_grad_norm_(net.parameters(), spec.clip_norm)
    torch.optim.SGD(net.parameters(), lr=spec.lr).step()
    net.zero_grad()
    return float(norm)


def test_one_stage_is_torchs_clipping_to_the_bit() -> None:
    batches, net = classes(COUNT, 4), classifier(3)
    (trainer,) = trainers_of([classifier(3)], SGD, m=M, staleness=(0,))
    Pipeline([trainer], batches, (0,), M).run()
    for u in range(UPDATES):
        assert clipped_by_torch(net, batches[u * M : (u + 1) * M], SGD) > SGD.clip_norm
    assert all(torch.equal(trainer.params[name], p) for name, p in net.named_parameters())


def test_the_first_stage_is_scaled_as_torch_scales_it_and_the_last_by_what_it_knows() -> None:
    batches, taus = classes(M, 4), (0, 0, 0)
    trainers = trainers_of(cut(classifier(3), BOUNDS), SGD, m=M, staleness=taus)
    Pipeline(trainers, batches, taus, M).run()
    net, before = classifier(3), copies(dict(classifier(3).named_parameters()))
    norm = clipped_by_torch(net, batches, SGD)
    whole = {name: (p.detach() - before[name]) for name, p in net.named_parameters()}
    for s, trainer in enumerate(trainers):
        moved = {name: p.detach() - before[name] for name, p in trainer.params.items()}
        ratio = math.sqrt(sum(float(v.square().sum()) for v in moved.values()))
        ratio /= math.sqrt(sum(float(whole[name].square().sum()) for name in moved))
        # Update 0 knows nothing of the stages before, so the norm is smaller and the step longer.
        assert ratio == pytest.approx(1.0, rel=1e-4) if s == 0 else ratio > 1.01
    assert norm > SGD.clip_norm


class Tied(nn.Module):
    """The first and the last of its layers have one weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.door, self.room = nn.Linear(6, 8), nn.Linear(8, 8)
        self.bias = nn.Parameter(torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.room(self.door(x)).tanh(), self.door.weight.t(), self.bias)


def test_a_tied_weight_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [{"x0": b["x"], "y0": b["y"]} for b in classes(M, 4)]
    loss = nn.functional.cross_entropy
    package = capture(Tied(), (batches[0]["x0"],), loss=loss, example_labels=(batches[0]["y0"],))
    layers = len(package.program.layer_bounds)
    stages = split_program(package.program, list(range(1, layers)))
    assert sum(bool(stage.received_params) for stage in stages) > 0
    trainers = [
        StageTrainer(
            StageComputation(stage),
            copies({name: package.weights[name] for name in stage.params}),
            copies({name: package.weights[name] for name in stage.buffers}),
            optimizer=SGD,
            microbatches_per_update=M,
            staleness=0,
            is_last=stage.is_last,
            stage=s,
        )
        for s, stage in enumerate(stages)
    ]
    known = Known(trainers, monkeypatch)
    Pipeline(trainers, batches, [0] * layers, M).run()
    norm = clipped_by_torch(Tied(), [{"x": b["x0"], "y": b["y0"]} for b in batches], SGD)
    assert math.hypot(known.own[0, 0], known.others[0, 0]) == pytest.approx(norm, rel=1e-5)


def test_the_early_step_takes_the_others_part_of_the_update_before(monkeypatch: pytest.MonkeyPatch) -> None:
    taus = (2, 1, 0)
    trainers = trainers_of(cut(classifier(3), BOUNDS), ADAMW, m=M, staleness=taus)
    known, asked = Known(trainers, monkeypatch), []
    real = trainers[0]._crossing_weights

    def noting(n: int) -> dict[str, Tensor]:
        asked.append(trainers[0]._clipping.others(trainers[0]._updates - 1))
        return real(n)

    monkeypatch.setattr(trainers[0], "_crossing_weights", noting)
    Pipeline(trainers, classes(COUNT, 4), taus, M).run()
    assert asked == [0.0, *(known.others[0, u] for u in range(UPDATES - 2))]


@pytest.mark.parametrize("others", [0.0, 0.7])
def test_the_early_step_of_a_complete_batch_is_the_step(others: float) -> None:
    params = {name: p.detach() for name, p in classifier(3).named_parameters()}
    generator = torch.Generator().manual_seed(0)
    sums = {name: torch.randn(p.shape, generator=generator) for name, p in params.items()}
    early = early_step(ADAMW, params, sums, {}, version=0, done=M, of=M, others=others)
    for name, weight in params.items():
        weight.grad = sums[name].clone()
    clipping = Clipping(ADAMW, M)
    clipping.norm(0, sums)
    clipping.taken_back(M - 1, others, list(sums.values()))
    clipping.clip(0, params.values())
    StageOptimizer(ADAMW, params).step(0)
    assert all(torch.equal(early[name], params[name]) for name in params)


def test_an_update_that_is_left_out_counts_nothing_and_old_ones_are_forgotten() -> None:
    norm = GlobalNorm(2)
    for u in range(50):
        norm.complete(u, math.nan if u == 48 else 3.0)
        assert norm.forwarded(2 * u, u, 9.0) == norm.taken_back(2 * u, 9.0) == 0.0
        norm.forwarded(2 * u + 1, u, 0.0)
        norm.taken_back(2 * u + 1, 4.0)
    assert norm.forwarded(101, 50, 4.0) == 5.0
    assert norm.forwarded(101, 49, 4.0) == 4.0
    assert norm.others(49) == 4.0
    assert max(len(known) for known in (norm._own, norm._before, norm._after)) <= 4


def test_the_scope_is_checked() -> None:
    assert rn.AdamW(clip_norm=1.0, clip_scope="model").clip_scope == "model"
    check_optimizer(SGD)
    with pytest.raises(ConfigError, match="clip_scope"):
        check_optimizer(replace(SGD, clip_scope="cluster"))
    with pytest.raises(ConfigError, match="needs clip_norm"):
        check_optimizer(replace(SGD, clip_norm=None))
