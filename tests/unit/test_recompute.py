"""Stages that compute activations again: the same numbers to the last bit, in a fraction of the memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from ravnest_p2p.core.planning.cuts import LayerTable
from ravnest_p2p.core.planning.recompute import NEVER
from ravnest_p2p.core.types import OptimizerSpec
from ravnest_p2p.model import (
    Package,
    Requirements,
    StageComputation,
    Terms,
    capture,
    capture_without_weights,
    stage_program,
)
from ravnest_p2p.model.fitting import a_peer
from ravnest_p2p.model.footprint import footprint
from ravnest_p2p.model.mixed import MixedComputation
from ravnest_p2p.model.profile import stand_in
from ravnest_p2p.training import StageTrainer, averaging
from tests.unit.model_zoo import CharGpt, flat_cross_entropy
from tests.unit.training_models import Pipeline, copies

ADAMW = OptimizerSpec("adamw", 1e-2, weight_decay=0.1)
COMPUTATIONS = {"fp32": StageComputation, "bf16": MixedComputation}


class Mixture(nn.Module):
    """Dropout, BatchNorm, a buffer that is read and changed, one weight used twice, and a long skip."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.twice, self.leave = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.norm1, self.norm2 = nn.BatchNorm1d(8), nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.3)
        self.register_buffer("level", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        first = self.drop(self.norm1(self.enter(x)).tanh())
        y = self.drop(self.twice(first).relu()) * self.level.clone()
        self.level.mul_(0.9).add_(0.1 * y.detach().abs().mean(0))
        y = self.norm2(self.twice(y)).tanh()
        return self.leave(self.drop(y + first))


def batches(count: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {"x0": torch.randn(8, 6, generator=generator), "y0": torch.randint(4, (8,), generator=generator)}
        for _ in range(count)
    ]


@cache
def mixture() -> Package:
    torch.manual_seed(0)
    batch = batches(1)[0]
    loss = nn.functional.cross_entropy
    return capture(Mixture(), (batch["x0"],), loss=loss, example_labels=(batch["y0"],))


@cache
def gpt() -> Package:
    tokens = torch.zeros(32, 8, dtype=torch.long)
    model = CharGpt(depth=8, width=64)
    return capture_without_weights(model, (tokens,), loss=flat_cross_entropy, example_labels=(tokens,))


def trained(
    precision: str, bounds: Sequence[int], taus: Sequence[int], starts: Sequence[int] | None, *, average: bool
) -> tuple[list[float], dict[str, Tensor]]:
    """Losses, and weights, buffers and optimizer state, after eight updates of four micro-batches."""
    package = mixture()
    edges = [0, *bounds, len(package.program.layer_bounds)]
    trainers = []
    for (lo, hi), tau in zip(pairwise(edges), taus, strict=True):
        stage = stage_program(package.program, lo, hi)
        trainers.append(
            StageTrainer(
                COMPUTATIONS[precision](stage, recompute=starts),
                copies({name: package.weights[name] for name in stage.params}),
                copies({name: package.weights[name] for name in stage.buffers}),
                optimizer=ADAMW,
                microbatches_per_update=4,
                staleness=tau,
                is_last=stage.is_last,
            )
        )

    def scatter(s: int) -> None:
        params, buffers = trainers[s].params, trainers[s].buffers
        flat = averaging.gather(params, buffers, [*params, *buffers])
        averaging.scatter(flat * 0.99, params, buffers, [*params, *buffers])

    pipeline = Pipeline(trainers, batches(32), taus, 4, after_step=scatter if average else None)
    pipeline.run()
    state: dict[str, Tensor] = {}
    for trainer in trainers:
        state |= {**trainer.params, **trainer.buffers}
        for name, slots in trainer.optimizer_state().items():
            state |= {f"{name}/{slot}": value for slot, value in slots.items()}
    return pipeline.losses, state


@pytest.mark.parametrize("average", [False, True], ids=["", "averaged"])
@pytest.mark.parametrize("precision", COMPUTATIONS)
@pytest.mark.parametrize("shape", ["one stage", "three stages, τ = 4, 2, 0"])
def test_training_is_the_same_to_the_last_bit(precision: str, shape: str, average: bool) -> None:
    layers = len(mixture().program.layer_bounds)
    bounds, taus = ((), (0,)) if shape == "one stage" else ((layers // 3, 2 * layers // 3), (4, 2, 0))
    losses, expected = trained(precision, bounds, taus, None, average=average)
    for starts in ((0,), (0, layers // 2), range(layers)):
        found_losses, found = trained(precision, bounds, taus, starts, average=average)
        assert found_losses == losses
        assert found.keys() == expected.keys()
        assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_the_last_stretch_of_the_model_runs_once() -> None:
    program = gpt().program
    layers = len(program.layer_bounds)
    last = stage_program(program, layers // 2, layers)
    assert footprint(last, recompute=(0,)) == footprint(last, remake=False)
    first = stage_program(program, 0, layers // 2)
    assert footprint(first, recompute=(0,)).held_bytes == sum(spec.nbytes for spec in first.sends)


def test_exact_peak_is_that_of_real_tensors() -> None:
    generator = torch.Generator().manual_seed(0)
    program = gpt().program
    layers = len(program.layer_bounds)
    for lo, hi in ((0, layers), (0, layers // 2), (layers // 3, layers)):
        stage = stage_program(program, lo, hi)
        starts = LayerTable(program.layers).stretches(3).starts
        real = footprint(stage, lambda spec: stand_in(spec, generator), recompute=starts)
        assert footprint(stage, recompute=starts) == real


@pytest.mark.parametrize("precision", COMPUTATIONS)
def test_a_window_of_a_deep_model_takes_a_fifth_of_the_activations(precision: str) -> None:
    needs = Requirements(gpt(), Terms(ADAMW, precision, staleness_bound=2, checkpoint=NEVER))
    half = len(needs.layers) // 2
    kept, again = (
        needs.need(0, half, stage=0, stages=2, staleness=2, recompute=way, exact=True)
        for way in (False, True)
    )
    others = kept.memory.tensors - kept.memory.activations
    assert again.memory.tensors - again.memory.activations == others
    assert again.memory.activations < 0.2 * kept.memory.activations
    assert again.peak_bytes - others < 0.3 * (kept.peak_bytes - others)
    assert again.peak_bytes < 1.25 * again.memory.tensors


def test_a_program_whose_second_run_differs_is_an_error() -> None:
    """Not reachable by a program that passed the loader; here a step is tampered with."""
    stage = stage_program(mixture().program, 0, len(mixture().program.layer_bounds))
    computation = StageComputation(stage, recompute=(0, stage.hi - 1))
    params = {name: mixture().weights[name].clone().requires_grad_() for name in stage.params}
    buffers = {name: mixture().weights[name].clone() for name in stage.buffers}
    (loss,) = computation.forward(params, buffers, (), batches(1)[0], 0)
    computation._steps[0].op = lambda *args: torch.zeros(3, 8).requires_grad_()
    with pytest.raises(RuntimeError):
        torch.autograd.grad(loss, list(params.values()))


def test_a_report_says_which_stages_recompute() -> None:
    terms = Terms(ADAMW, staleness_bound=2, microbatches_per_update=8)
    needs = Requirements(gpt(), terms)
    ample = gpt().report(terms, stages=2)
    assert [stage.need.recompute for stage in ample.stages] == [False, False]
    always = gpt().report(replace(terms, checkpoint="always"), stages=2)
    assert [stage.need.recompute for stage in always.stages] == [True, True]
    tight = needs.need(0, len(needs.layers) // 2, stages=2, staleness=1).memory.needed - 4_000_000
    found = gpt().report(terms, peers=[a_peer(name, memory_bytes=tight) for name in "ab"])
    assert [stage.need.recompute for stage in found.stages] == [True, False]
    assert all(stage.need.memory.needed <= tight for stage in found.stages)
    assert [stage["recompute"] for stage in found.as_dict()["stages"]] == [True, False]
