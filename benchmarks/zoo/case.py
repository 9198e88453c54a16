"""What a model is trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

SCALES = 1.0, -2.0, 8.0, 0.25


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

    def at(self, step: int) -> Case:
        """Other data for each step: samples in another order, real numbers of another size."""
        return replace(self, inputs=_moved(self.inputs, step), labels=_moved(self.labels, step))

    def run(self) -> Tensor:
        """The model's loss in eager mode."""
        if self.loss is not None:
            value: Tensor = self.loss(self.model(*self.inputs), *self.labels)
            return value
        output = self.model(*self.inputs, *self.labels)
        return output if isinstance(output, Tensor) else output.loss

    def fields(self) -> dict[str, Tensor]:
        """Inputs and labels under the package's field names."""
        named = {f"x{i}": t for i, t in enumerate(self.inputs)}
        return named | {f"y{i}": t for i, t in enumerate(self.labels)}

    def named(self, kind: str) -> dict[str, Tensor]:
        """Parameters or buffers of model and loss under the package's names."""
        found = dict(getattr(self.model, f"named_{kind}")())
        if isinstance(self.loss, nn.Module):
            found |= {f"loss::{n}": t for n, t in getattr(self.loss, f"named_{kind}")()}
        return found


def _moved(tensors: tuple[Any, ...], step: int) -> tuple[Any, ...]:
    return tuple(_move(t, step) if isinstance(t, Tensor) else t for t in tensors)


def _move(tensor: Tensor, step: int) -> Tensor:
    moved = tensor.roll(step, 0) if tensor.dim() else tensor.clone()
    return moved * SCALES[step % len(SCALES)] if tensor.dtype.is_floating_point else moved


def image_case(model: nn.Module, loss: Callable[..., Any], size: int, batch: int = 2) -> Case:
    """Random RGB images of that side length in ten classes."""
    return Case(model, (torch.randn(batch, 3, size, size),), (torch.randint(10, (batch,)),), loss)
