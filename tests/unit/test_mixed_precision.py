"""bfloat16 jobs: what torch.autocast computes, from float32 weights, the same however the model is cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import ravnest_p2p as rn
from ravnest_p2p.model import Package, stage_program
from ravnest_p2p.model.capture import capture
from ravnest_p2p.model.matrices import hidden_matrices
from ravnest_p2p.model.mixed import MixedComputation, crossing_slots
from ravnest_p2p.training import StageTrainer
from tests.unit.training_models import Pipeline, copies


class Words(nn.Module):
    """A transformer block with dropout, and BatchNorm in front of the head."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 16)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout, batch_first=True, norm_first=True)
        self.norm, self.head = nn.BatchNorm1d(16), nn.Linear(16, 11)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.block(self.words(x)).mean(1)))


def data(count: int) -> list[dict[str, Tensor]]:
    """Sentences of six words, four of them the one that is the label."""
    generator = torch.Generator().manual_seed(1)
    micro_batches = []
    for _ in range(count):
        words = torch.randint(11, (4, 6), generator=generator)
        words[:, :4] = words[:, :1]
        micro_batches.append({"x0": words, "y0": words[:, 0]})
    return micro_batches


@pytest.fixture(scope="module")
def package() -> Package:
    return captured(Words())


def captured(module: nn.Module) -> Package:
    torch.manual_seed(0)
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.3)
    batch = data(1)[0]
    return capture(module, (batch["x0"],), loss=nn.functional.cross_entropy, example_labels=(batch["y0"],))


def trained(
    package: Package, bounds: tuple[int, ...], batches: list[dict[str, Tensor]], spec=None
) -> tuple[list[StageTrainer], list[float]]:
    edges = [0, *bounds, len(package.program.layer_bounds)]
    trainers = []
    for lo, hi in pairwise(edges):
        stage = stage_program(package.program, lo, hi)
        trainers.append(
            StageTrainer(
                MixedComputation(stage),
                copies({name: package.weights[name] for name in stage.params}),
                copies({name: package.weights[name] for name in stage.buffers}),
                optimizer=spec or rn.AdamW(lr=1e-2),
                microbatches_per_update=2,
                staleness=0,
                is_last=stage.is_last,
                matrices=hidden_matrices(package.program),
            )
        )
    losses = Pipeline(trainers, batches, [0] * len(trainers), 2).run().losses
    return trainers, losses


def state_of(trainers: list[StageTrainer]) -> dict[str, Tensor]:
    return {name: value for t in trainers for name, value in {**t.params, **t.buffers}.items()}


def test_every_cut_trains_the_same(package: Package) -> None:
    layers, batches = len(package.program.layer_bounds), data(8)
    whole, losses = trained(package, (), batches)
    for cut in range(1, layers):
        trainers, others = trained(package, (cut,), batches)
        assert others == losses
        state = state_of(trainers)
        assert all(torch.equal(state[name], value) for name, value in state_of(whole).items()), cut


def test_everything_that_is_kept_is_float32(package: Package) -> None:
    (trainer,), _ = trained(package, (), data(4), rn.Muon())
    tensors = [*trainer.params.values(), *trainer.buffers.values()]
    tensors += [slot for slots in trainer.optimizer_state().values() for slot in slots.values()]
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.float32}


def test_the_crossing_slots_are_those_of_all_cuts(package: Package) -> None:
    program = package.program
    sent = {slot for bound in program.layer_bounds[:-1] for slot in program.cut_map.crossing(bound)}
    assert crossing_slots(program) == sent | {program.output}


def test_products_are_in_bfloat16_and_near_to_float32() -> None:
    module = Words(dropout=0.0)
    package = captured(module)
    stage = stage_program(package.program, 0, len(package.program.layer_bounds))
    params = {name: package.weights[name].clone().requires_grad_() for name in stage.params}
    buffers = copies({name: package.weights[name] for name in stage.buffers})
    batch = data(1)[0]
    (loss,) = MixedComputation(stage).forward(params, buffers, (), batch, 0)
    found = dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        expected = nn.functional.cross_entropy(module(batch["x0"]), batch["y0"])
    full = nn.functional.cross_entropy(module(batch["x0"]), batch["y0"])
    full.backward()
    assert loss.dtype == torch.float32
    assert loss != full
    torch.testing.assert_close(loss, expected, rtol=2e-2, atol=0.0)
    torch.testing.assert_close(loss, full, rtol=2e-2, atol=0.0)
    assert all(gradient.dtype == torch.float32 for gradient in found.values())
    for name, weight in module.named_parameters():
        # What BatchNorm takes out of a bias's gradient is rounding noise.
        if weight.ndim > 1:
            assert (found[name] - weight.grad).norm() <= 0.1 * weight.grad.norm(), name


class Watched(nn.Module):
    """Looks at what a weight gives, without a gradient, before it uses it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.peak = nn.Linear(6, 4), nn.Buffer(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.peak.copy_(self.layer(x).abs().max())
        return self.layer(x)


def test_a_weight_that_was_used_without_gradient_keeps_its_own() -> None:
    x, y = torch.randn(4, 6), torch.arange(4)
    package = capture(Watched(), (x,), loss=nn.functional.cross_entropy, example_labels=(y,))
    stage = stage_program(package.program, 0, len(package.program.layer_bounds))
    params = {name: package.weights[name].clone().requires_grad_() for name in stage.params}
    buffers = copies({name: package.weights[name] for name in stage.buffers})
    (loss,) = MixedComputation(stage).forward(params, buffers, (), {"x0": x, "y0": y}, 0)
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(loss, list(params.values())))
    assert buffers["peak"] > 0


def test_it_learns(package: Package) -> None:
    _, losses = trained(package, (2,), data(160), rn.AdamW(lr=1e-2, warmup_updates=5))
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
