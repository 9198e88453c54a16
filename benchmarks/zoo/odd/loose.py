"""Odd inputs, outputs, losses and dtypes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo.case import Case
from benchmarks.zoo.odd.base import WIDTH, Odd, case

X = WIDTH


class Plain(Odd):
    def middle(self, h: Tensor) -> Tensor:
        return h.relu()


class WritesInput(Plain):
    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        x[:, 0] = 1
        return super().forward(x)


class Nested(Plain):
    def forward(self, x: Tensor) -> dict[str, Any]:
        y = super().forward(x)
        return {"main": (y, [x.mean(), None]), "size": x.shape[0]}


class Listed(Plain):
    def forward(self, xs: list[Tensor]) -> Tensor:
        return super().forward(xs[0] + xs[1])


class Own(Plain):
    def forward(self, x: Tensor, y: Tensor) -> Any:
        class Output:
            loss = F.mse_loss(super(Own, self).forward(x), y)

        return Output


class Bytes(Plain):
    def forward(self, pixels: Tensor, mask: Tensor) -> Tensor:
        return super().forward(pixels.float() / 255 * mask)


class ProxyLoss(nn.Module):
    """A loss that has parameters of its own, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.proxies = nn.Parameter(torch.randn(2, 2))
        self.register_buffer("scale", torch.tensor(3.0))

    def forward(self, output: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(output @ self.proxies * self.scale, label[:, 0].long().abs() % 2)


OUTSIDE = nn.Parameter(torch.ones(WIDTH))
TABLE = torch.linspace(0, 1, WIDTH)


class UsesOutside(Odd):
    def middle(self, h: Tensor) -> Tensor:
        return h * OUTSIDE


class UsesTable(Odd):
    def middle(self, h: Tensor) -> Tensor:
        return h * TABLE + torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])


def regularized() -> Case:
    """The loss reads the model's weights through its closure."""
    made = case(Plain())
    model = made.model
    loss = lambda out, y: F.mse_loss(out, y) + 0.1 * model.first.weight.square().sum()  # noqa: E731
    return Case(model, made.inputs, made.labels, loss)


def closure_buffer() -> Case:
    """The loss reads a buffer that forward() writes, through its closure."""
    made = case(nn.Sequential(Plain(), nn.BatchNorm1d(2)))
    norm = made.model[1]
    loss = lambda out, y: F.mse_loss(out, y) * (1 + norm.running_var.sum())  # noqa: E731
    return Case(made.model, made.inputs, made.labels, loss)


def _double() -> Case:
    made = case(Plain().double())
    return Case(made.model, (made.inputs[0].double(),), (made.labels[0].double(),), made.loss)


def _half() -> Case:
    made = case(Plain().bfloat16())
    return Case(made.model, (made.inputs[0].bfloat16(),), (made.labels[0].bfloat16(),), made.loss)


def _plain(loss: Callable[..., Any]) -> Case:
    made = case(Plain())
    return Case(made.model, made.inputs, made.labels, loss)


CASES: dict[str, Callable[[], Case]] = {
    "writes_its_input": lambda: case(WritesInput()),
    "nested_output": lambda: Case(
        Nested(), case(Plain()).inputs, (torch.randn(4, 2),), lambda out, y: F.mse_loss(out["main"][0], y)
    ),
    "list_input": lambda: Case(Listed(), ([torch.randn(4, X)] * 2,), (torch.randn(4, 2),), F.mse_loss),
    "complex_input": lambda: Case(
        Plain(), (torch.randn(4, X, dtype=torch.complex64),), (torch.randn(4, 2),), F.mse_loss
    ),
    "byte_and_bool_inputs": lambda: Case(
        Bytes(),
        (torch.randint(256, (4, X), dtype=torch.uint8), torch.rand(4, X) > 0.5),
        (torch.randn(4, 2),),
        F.mse_loss,
    ),
    "returns_its_loss": lambda: Case(Own(), (torch.randn(4, X),), (torch.randn(4, 2),), None),
    "lambda_loss": lambda: _plain(lambda out, y: (out - y).abs().mean() * 2),
    "partial_loss": lambda: _plain(partial(F.smooth_l1_loss, beta=0.5)),
    "loss_with_parameters": lambda: _plain(ProxyLoss()),
    "loss_over_own_weights": regularized,
    "loss_over_own_buffer": closure_buffer,
    "vector_loss": lambda: _plain(lambda out, y: out - y),
    "detached_loss": lambda: _plain(lambda out, y: (out.detach() - y).mean()),
    "float64_model": _double,
    "bfloat16_model": _half,
    "parameter_from_outside": lambda: case(UsesOutside()),
    "constant_from_outside": lambda: case(UsesTable()),
}
