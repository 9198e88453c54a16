"""What a model is trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A model with one micro-batch.

    Attributes:
        loss: called as loss(output, *labels); None where the model returns its loss.
    """

    model: nn.Module
    inputs: tuple[Any, ...]
    labels: tuple[Tensor, ...] = ()
    loss: Callable[..., Any] | None = None

    def step(self, model: nn.Module, loss: Callable[..., Any] | None) -> Tensor:
        """The loss of a copy of the model on this micro-batch, in eager mode."""
        inputs = [t.clone() if isinstance(t, Tensor) else t for t in self.inputs]
        if loss is not None:
            value: Tensor = loss(model(*inputs), *self.labels)
            return value
        output = model(*inputs, *self.labels)
        return output if isinstance(output, Tensor) else output.loss

    def fields(self) -> dict[str, Tensor]:
        """Inputs and labels under the package's field names."""
        named = {f"x{i}": t.clone() for i, t in enumerate(self.inputs)}
        return named | {f"y{i}": t for i, t in enumerate(self.labels)}


def image_case(model: nn.Module, loss: Callable[..., Any], size: int, batch: int = 2) -> Case:
    """Random RGB images of that side length in ten classes."""
    return Case(model, (torch.randn(batch, 3, size, size),), (torch.randint(10, (batch,)),), loss)
