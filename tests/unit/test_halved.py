"""A weight of which a half is kept computes as the rounded weight does, and keeps nothing else alive."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ravnest_p2p.core.types import OptimizerSpec
from ravnest_p2p.model.footprint import StorageMeter
from ravnest_p2p.training import StageTrainer
from ravnest_p2p.training.halved import Halved, halved
from tests.unit.training_models import ModuleComputation, classes, classifier, copies, cut, trainers_of


class Mixed(nn.Module):
    """Every way in which models read their weights: products, views, sums, rows, convolutions, norms."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(7, 8)
        self.table = nn.Parameter(torch.randn(5, 8))
        self.norm = nn.LayerNorm(8)
        self.conv = nn.Conv1d(5, 6, 3, padding=1)
        self.last = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        value = self.norm(self.rows(x) + self.table) @ self.table[1:3].T
        value = torch.cat([value, self.rows.weight[:6].expand(3, 6, 8)[:, :5, :6]], -1)
        value = self.last(self.conv(value)) * self.last.weight.view(-1)[:8]
        return torch.nn.functional.linear(value, self.last.weight.split(4)[1]).tanh().sum()


def test_it_is_the_rounded_weight_to_the_last_bit() -> None:
    torch.manual_seed(0)
    model, x = Mixed(), torch.randint(7, (3, 5))
    weights = dict(model.named_parameters())
    rounded = {n: w.detach().bfloat16().float().requires_grad_() for n, w in weights.items()}
    halves = {n: halved(w.detach()).requires_grad_() for n, w in weights.items()}
    expected = functional_call(model, rounded, (x,))
    found = functional_call(model, halves, (x,))
    assert torch.equal(found, expected)
    gradients = torch.autograd.grad(found, list(halves.values()))
    for mine, other in zip(gradients, torch.autograd.grad(expected, list(rounded.values())), strict=True):
        assert type(mine) is Tensor
        assert torch.equal(mine, other)


def test_only_float32_is_halved() -> None:
    assert isinstance(halved(torch.ones(3)), Halved)
    for dtype in (torch.float64, torch.bfloat16, torch.int64):
        weight = torch.ones(3, dtype=dtype)
        assert halved(weight) is weight


def test_it_is_never_written_to() -> None:
    with pytest.raises(RuntimeError, match="a half is kept"):
        halved(torch.ones(3)).add_(1.0)
    assert torch.equal(torch.zeros(3).add_(halved(torch.ones(3))), torch.ones(3))


def test_a_graph_keeps_the_half_alone() -> None:
    """Between forward and backward there are two bytes a weight, not six."""
    weight, x = torch.randn(256, 256), torch.randn(2, 256)
    with StorageMeter([weight, x]) as meter:
        half = halved(weight).requires_grad_()
        out = torch.nn.functional.linear(x, half)
        gc.collect()
        assert meter.bytes == weight.nbytes // 2 + out.nbytes
        (gradient,) = torch.autograd.grad(out.sum(), [half])
    assert torch.equal(gradient, x.sum(0).expand(256, 256))


def test_a_trainer_keeps_a_quarter_of_adamws_state() -> None:
    stages, batches = cut(classifier(0), (3,)), classes(3, 0)
    extra = {}
    for halve in (True, False):
        spec = OptimizerSpec("adamw", 1e-2)
        trainer = trainers_of(stages, spec, m=2, staleness=(1, 0), halve=halve)[0]
        with StorageMeter([*trainer.params.values()]) as meter:
            for i in range(2):
                trainer.forward(i, (), batches[i], 0, speculative=False)
            trainer.backward(0, [torch.ones(5, 10)])
            before = meter.bytes
            trainer.speculate()
            extra[halve] = meter.bytes - before
    params = sum(p.nbytes for p in stages[0].parameters())
    assert extra == {True: params // 2, False: params}


def test_what_crosses_a_cut_is_kept_and_sent_in_full() -> None:
    class Shared(ModuleComputation):
        def forward(self, params, buffers, received, data, seed):  # type: ignore[no-untyped-def]
            return params["weight"], data["x"] @ params["weight"], data["x"] @ params["own"]

    weights = {"weight": torch.randn(6, 6), "own": torch.randn(6, 6)}
    trainer = StageTrainer(
        Shared(nn.Identity()), copies(weights), {}, optimizer=OptimizerSpec("sgd", 0.1),
        microbatches_per_update=2, staleness=1, is_last=False,
    )  # fmt: skip
    batches = classes(3, 0)
    for i in range(2):
        sent = trainer.forward(i, (), batches[i], 0, speculative=False).outputs
    trainer.backward(0, [torch.ones_like(t) for t in sent])
    trainer.speculate()
    early = trainer._early[1]
    assert not isinstance(early["weight"], Halved)
    assert isinstance(early["own"], Halved)
    crossing = trainer.forward(2, (), batches[2], 0, speculative=True).outputs
    assert torch.equal(crossing[0], early["weight"].detach())


def test_a_half_that_is_sent_before_anyone_knew_is_sent_as_plain_float32() -> None:
    class Shared(ModuleComputation):
        def forward(self, params, buffers, received, data, seed):  # type: ignore[no-untyped-def]
            return params["weight"], params["weight"][1:] * 1.0

    trainer = StageTrainer(
        Shared(nn.Identity()), {"weight": torch.randn(6, 6)}, {}, optimizer=OptimizerSpec("sgd", 0.1),
        microbatches_per_update=1, staleness=1, is_last=False,
    )  # fmt: skip
    trainer.speculate()
    trainer.forward(0, (), {}, 0, speculative=False)
    sent = trainer.forward(1, (), {}, 0, speculative=True).outputs
    assert {type(t) for t in sent} == {Tensor}
    assert torch.equal(sent[0], trainer.params["weight"].detach().bfloat16().float())
    for i in range(2):
        trainer.backward(i, [torch.ones_like(t) for t in sent])
        trainer.step()
    assert trainer.version == 2
