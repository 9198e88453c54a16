"""Sums of gradients: right whoever else has a gradient's memory, and not copied where nobody has."""

from __future__ import annotations

import torch
from torch import Tensor

from ravnest_p2p.core.types import OptimizerSpec
from ravnest_p2p.training.optimizer import StageOptimizer
from ravnest_p2p.training.sums import GradientSums

WEIGHTS = {"a": torch.zeros(4, 3), "b": torch.zeros(4, 3), "c": torch.zeros(2)}


def test_the_first_gradient_becomes_the_sum_and_later_ones_are_added() -> None:
    sums, first = GradientSums(WEIGHTS), torch.ones(4, 3)
    sums.add(0, {"a": first, "c": None})
    assert sums.of(0)["a"] is first
    second = torch.full((4, 3), 2.0)
    sums.add(0, {"a": second})
    assert torch.equal(sums.of(0)["a"], torch.full((4, 3), 3.0))
    assert torch.equal(second, torch.full((4, 3), 2.0))
    assert list(sums.of(0)) == ["a"]


def test_what_others_may_have_is_copied() -> None:
    whole, twice = torch.ones(5, 3), torch.ones(4, 3)
    cases: list[tuple[dict[str, Tensor | None], list[Tensor]]] = [
        ({"a": twice, "b": twice}, []),
        ({"a": twice}, [twice.view(3, 4)]),
        ({"a": whole[1:]}, []),
        ({"a": torch.ones(3, 4).t()}, []),
        ({"a": torch.ones(1).expand(4, 3)}, []),
        ({"a": torch.ones(4, 3, dtype=torch.float64)}, []),
    ]
    for gradients, others in cases:
        sums = GradientSums(WEIGHTS)
        sums.add(0, gradients, others)
        sums.add(0, {name: torch.ones(4, 3) for name in gradients})
        for total in sums.of(0).values():
            assert torch.equal(total, torch.full((4, 3), 2.0))
            assert total.is_contiguous()
            assert total.dtype == torch.float32
        assert float(twice.sum()) == 12.0
        assert float(whole.sum()) == 15.0


def test_batches_are_apart_and_forgotten_when_taken() -> None:
    sums = GradientSums(WEIGHTS)
    sums.add(0, {"c": torch.ones(2)})
    sums.add(1, {"c": torch.full((2,), 5.0), "a": torch.ones(4, 3)})
    assert torch.equal(sums.pop(0)["c"], torch.ones(2))
    assert sums.of(0) == {} == sums.pop(0)
    assert list(sums.of(1)) == ["a", "c"], "in the parameters' order"


def test_autograd_notices_that_an_optimizer_wrote() -> None:
    for name in ("sgd", "adam", "adamw", "muon", "lamb"):
        weight = torch.ones(4, 3, requires_grad=True)
        optimizer = StageOptimizer(OptimizerSpec(name, 0.1, momentum=0.9), {"w": weight}, {"w"})
        weight.grad, before = torch.ones(4, 3), weight._version
        optimizer.step(0)
        assert weight._version > before, name
