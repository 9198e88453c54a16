"""What is made again in the backward pass: the same bits, fewer bytes, and nothing where weights move."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ravnest_p2p.model import Package, StageComputation, capture, split_program
from ravnest_p2p.model.footprint import StorageMeter, footprint
from ravnest_p2p.model.requirements import in_precision
from ravnest_p2p.training.halved import halved

WIDTH, TOKENS = 64, 1024


class Gated(nn.Module):
    """As Llama's: a norm of elementary operations, a view, and products of what is remade."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.gate, self.up, self.down = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.scale * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))
        flat = normed.view(-1, WIDTH)
        return x + self.down(F.silu(self.gate(flat)) * self.up(flat)).view_as(x)


class Block(nn.Module):
    """A norm, a product, an activation function, dropout that must not be drawn again."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.network = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x + F.dropout(self.network(self.norm(x)), 0.1, self.training)


@pytest.fixture(scope="module", params=[Block, Gated], ids=["LayerNorm and GELU", "gated"])
def package(request: pytest.FixtureRequest) -> Package:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, WIDTH), request.param(), request.param(), nn.Linear(WIDTH, 3))
    x, y = torch.randn(1, TOKENS, 4), torch.randn(1, TOKENS, 3)
    return capture(model, (x,), loss=F.mse_loss, example_labels=(y,))


def data() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "x0": torch.randn(1, TOKENS, 4, generator=generator),
        "y0": torch.randn(1, TOKENS, 3, generator=generator),
    }


def trained(computation: StageComputation, weights: Mapping[str, Tensor]) -> tuple[list[Tensor], int]:
    """Loss and gradients, and the bytes held between forward and backward."""
    params = {n: weights[n] for n in computation.stage.params}
    fields = data()
    meter = StorageMeter([*params.values(), *fields.values()])
    with meter:
        (loss,) = computation.forward(params, {}, (), fields, 5)
        held = meter.bytes
        gradients = torch.autograd.grad(loss, list(params.values()))
    return [loss.detach(), *gradients], held


@pytest.mark.parametrize("early", [False, True], ids=["live weights", "halved weights"])
def test_the_same_bits_in_fewer_bytes(package: Package, early: bool) -> None:
    (stage,) = split_program(package.program, [])
    weights = {
        name: (halved(weight) if early else weight.clone()).requires_grad_()
        for name, weight in package.weights.items()
    }
    kept, kept_bytes = trained(StageComputation(stage, remake=False), weights)
    remade, remade_bytes = trained(StageComputation(stage), weights)
    assert all(torch.equal(a, b) for a, b in zip(kept, remade, strict=True))
    assert remade_bytes < 0.8 * kept_bytes


def test_what_is_saved_is_what_the_layers_say(package: Package) -> None:
    (stage,) = split_program(package.program, [])
    kept, remade = (footprint(stage, remake=remake).held_bytes for remake in (False, True))
    assert kept - remade == sum(layer.remade_bytes for layer in package.program.layers) > 0
    assert sum(layer.remade_bytes for layer in in_precision(package.program, "bf16").layers) == 0


def test_a_weight_that_moved_meanwhile_is_refused(package: Package) -> None:
    (stage,) = split_program(package.program, [])
    params = {name: weight.clone().requires_grad_() for name, weight in package.weights.items()}
    (loss,) = StageComputation(stage).forward(params, {}, (), data(), 5)
    with torch.no_grad():
        next(p for n, p in params.items() if n.endswith(("norm.weight", "scale"))).add_(1.0)
    with pytest.raises(RuntimeError, match="changed in place"):
        torch.autograd.grad(loss, list(params.values()))


def test_small_values_are_kept() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, WIDTH), nn.LayerNorm(WIDTH), nn.GELU(), nn.Linear(WIDTH, 3))
    x, y = torch.randn(2, 4), torch.randn(2, 3)
    package = capture(model, (x,), loss=F.mse_loss, example_labels=(y,))
    assert sum(layer.remade_bytes for layer in package.program.layers) == 0
