"""A model that computes otherwise when it is traced is taken where only rounding differs, and no other."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ravnest_p2p.core.errors import CaptureError
from ravnest_p2p.model import capture
from ravnest_p2p.model.rounding import beyond_rounding, distance, nudge

X, Y = torch.randn(8, 6, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 3


class TwoFaced(nn.Module):
    """Takes another formula when it is traced; `error` makes it a wrong one."""

    def __init__(self, error: float = 0.0, eval_error: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 3)
        self.norm = nn.BatchNorm1d(5)
        self.error, self.eval_error = error, eval_error

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).tanh()
        if not torch.compiler.is_exporting():
            plain: Tensor = self.second(x)
            return plain
        weight = self.second.weight * (1.0 + (self.error if self.training else self.eval_error))
        summed: Tensor = (x.unsqueeze(1) * weight.unsqueeze(0)).flip(-1).sum(-1) + self.second.bias
        return summed


class Shifted(nn.Module):
    """The gradient of its bias is zero but for rounding, since a softmax ignores what is added to all."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.bias = nn.Linear(6, 3), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.linear(x)
        if torch.compiler.is_exporting():
            return scores + (self.bias * 3.0) / 3.0
        return scores + self.bias


def taken(model: nn.Module) -> tuple[bool, str]:
    """Whether it equals the model to the last bit, and why there is no evaluation."""
    package = capture(model, (X,), loss=functional.cross_entropy, example_labels=(Y,))
    assert package.compared
    return package.exact, package.evaluation_refusal


def test_another_order_of_summing_is_taken() -> None:
    assert taken(TwoFaced()) == (False, "")
    assert taken(nn.Linear(6, 3)) == (True, "")


@pytest.mark.parametrize("error", [3e-5, 1e-3, -1.0])
def test_what_is_wrong_by_more_than_rounding_is_refused(error: float) -> None:
    with pytest.raises(CaptureError, match="differs by up to"):
        taken(TwoFaced(error))


class Counting(TwoFaced):
    """Never computes the same twice, by a count that tracing takes for a constant."""

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(1)
        return super().forward(x) * float(len(self.calls))

    calls: ClassVar[list[int]] = []


def test_a_model_that_does_not_repeat_itself_is_refused() -> None:
    with pytest.raises(CaptureError, match="Python counter"):
        taken(Counting())


def test_an_evaluation_that_is_wrong_is_left_out() -> None:
    exact, why_not = taken(TwoFaced(eval_error=1e-3))
    assert not exact
    assert "in eval mode" in why_not


def test_a_gradient_of_rounding_alone_is_compared_as_one() -> None:
    assert taken(Shifted())[1] == ""


def test_distance_is_infinite_where_no_rounding_explains_it() -> None:
    ones = torch.ones(3)
    assert distance(ones, ones * 3.0) == pytest.approx(12.0**0.5)
    holed = torch.tensor([1.0, float("nan"), float("inf")])
    assert distance(holed, holed.clone()) == 0.0
    for found, other in ((ones, torch.ones(4)), (ones, holed), (holed, -holed), (torch.arange(3),) * 2):
        assert distance(found, other) == float("inf")


def test_nudging_moves_last_bits_once_and_by_its_own_chance() -> None:
    tensor = torch.linspace(-3.0, 3.0, 1000)
    before, state = tensor.clone(), torch.get_rng_state()
    nudge([tensor, tensor, torch.arange(3)], 0)
    assert torch.equal(torch.get_rng_state(), state)
    moved = (tensor - before).abs() / before.abs()
    assert 0.5 < (moved > 0).float().mean() < 0.8
    assert moved.max() <= 2 * torch.finfo(torch.float32).eps
    again = before.clone()
    nudge([again], 0)
    assert torch.equal(again, tensor)
    nudge([again], 1)
    assert not torch.equal(again, tensor)


def test_the_bound_follows_what_the_model_does_under_nudges() -> None:
    shaken = {None: 0.0, 0: 1e-3, 1: -1e-3, 2: 5.0}

    def results(trial: int | None) -> dict[str, Tensor]:
        return {"steady": torch.ones(4), "shaky": torch.ones(4) + shaken[trial]}

    assert beyond_rounding({"steady": 1e-7, "shaky": 7e-3}, results) is None
    assert beyond_rounding({"steady": 1e-5}, results) == "steady"
    assert beyond_rounding({"shaky": 9e-3}, results) == "shaky"
