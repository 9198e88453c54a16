"""The outer optimizer is PyTorch's SGD on the difference as a gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ravnest_p2p.core.errors import ConfigError
from ravnest_p2p.training.outer import DILOCO, Outer, OuterSpec


@pytest.mark.parametrize(
    "spec",
    [OuterSpec(), OuterSpec("sgd", 0.5), OuterSpec("sgd", 0.7, 0.8), OuterSpec("nesterov", 0.4), DILOCO],
)
def test_it_steps_as_pytorch_does(spec: OuterSpec) -> None:
    chance = np.random.default_rng(0)
    weights = chance.normal(size=50).astype(np.float32)
    parameter = torch.nn.Parameter(torch.from_numpy(weights.copy()))
    optimizer = torch.optim.SGD(
        [parameter], spec.lr, momentum=spec.momentum, nesterov=spec.name == "nesterov" and spec.momentum > 0
    )
    outer = Outer(spec)
    for _ in range(4):
        difference = chance.normal(size=50).astype(np.float32)
        before = difference.copy()
        outer.step(weights, difference)
        assert np.array_equal(difference, before)
        parameter.grad = torch.from_numpy(-difference)
        optimizer.step()
        assert np.allclose(weights, parameter.detach().numpy(), atol=1e-5)
    assert (outer.velocity is None) == (spec.momentum == 0)


def test_without_one_the_mean_is_taken_to_the_bit() -> None:
    weights, difference = np.float32([1.0, 0.1]), np.float32([1e-9, 0.2])
    expected = weights + difference
    Outer(OuterSpec()).step(weights, difference)
    assert np.array_equal(weights, expected)


@pytest.mark.parametrize(
    "spec",
    [
        OuterSpec("adam"),
        OuterSpec("sgd", 0.0),
        OuterSpec("sgd", float("nan")),
        OuterSpec("sgd", 1.0, 1.0),
        OuterSpec("nesterov", 1.0, -0.1),
    ],
)
def test_other_numbers_are_refused(spec: OuterSpec) -> None:
    with pytest.raises(ConfigError):
        Outer(spec)
