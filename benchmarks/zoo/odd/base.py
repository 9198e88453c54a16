"""What the odd models share: two linear layers, and something odd between them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo.case import Case

WIDTH = 8


class Odd(nn.Module):
    """`middle` is the odd part."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

    def middle(self, h: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)))


class Wrapped(Odd):
    """Two linear layers around a module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def middle(self, h: Tensor) -> Tensor:
        return self.module(h)


def case(model: nn.Module) -> Case:
    return Case(model, (torch.randn(4, WIDTH),), (torch.randn(4, 2),), F.mse_loss)


def odd(middle: Callable[..., Tensor]) -> Callable[[], Case]:
    """Maker of a model with that function, called as middle(model, h), between its layers."""
    return lambda: case(type("Odd" + middle.__name__.title().replace("_", ""), (Odd,), {"middle": middle})())


def wrapped(make: Callable[[], nn.Module]) -> Callable[[], Case]:
    """Maker of a model with that module between its layers."""
    return lambda: case(Wrapped(make()))
