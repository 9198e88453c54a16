"""Gradients that are not those of the forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.zoo.case import Case
from benchmarks.zoo.odd.base import WIDTH, Odd, case, odd


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class _ClippedGradient(torch.autograd.Function):
    """Acts on large gradients only, so that two small steps look right."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.clamp(-1e6, 1e6)


def straight_through(self: Odd, h: Tensor) -> Tensor:
    return _Rounded.apply(h)


def straight_through_detach(self: Odd, h: Tensor) -> Tensor:
    return h + (h.round() - h).detach()


def clipping_function(self: Odd, h: Tensor) -> Tensor:
    return _ClippedGradient.apply(h)


def tensor_hook(self: Odd, h: Tensor) -> Tensor:
    h.register_hook(lambda grad: grad.clamp(-1e6, 1e6))
    return h.relu()


def checkpointed(self: Odd, h: Tensor) -> Tensor:
    return checkpoint(lambda t: torch.dropout(t.tanh(), 0.3, True), h, use_reentrant=False)


def checkpointed_reentrant(self: Odd, h: Tensor) -> Tensor:
    return checkpoint(lambda t: t.tanh() * 2, h, use_reentrant=True)


def half_detached(self: Odd, h: Tensor) -> Tensor:
    a, b = h.chunk(2, 1)
    return torch.cat([a.detach(), b], 1) + torch.where(h > 0, h, h.detach())


def gradient_penalty(self: Odd, h: Tensor) -> Tensor:
    (slope,) = torch.autograd.grad(h.square().sum(), h, create_graph=True)
    return h + slope.norm()


def no_grad_part(self: Odd, h: Tensor) -> Tensor:
    with torch.no_grad():
        scale = h.std()
    with torch.enable_grad():
        return h / (scale + 1)


def backward_hook() -> Case:
    made = case(_Plain())
    made.model.first.register_full_backward_hook(lambda module, inner, outer: (inner[0] * 2,))
    return made


def parameter_hook() -> Case:
    made = case(_Plain())
    made.model.first.weight.register_hook(lambda grad: grad * 0.5)
    return made


def forward_hook() -> Case:
    made = case(_Plain())
    made.model.first.register_forward_hook(lambda module, inputs, output: output * 2)
    made.model.last.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    return made


class _Plain(Odd):
    def middle(self, h: Tensor) -> Tensor:
        return h.relu()


class _Frozen(_Plain):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(WIDTH, WIDTH)
        self.first.requires_grad_(False)


CASES: dict[str, Callable[[], Case]] = {
    f.__name__: odd(f)
    for f in (
        straight_through,
        straight_through_detach,
        clipping_function,
        tensor_hook,
        checkpointed,
        checkpointed_reentrant,
        half_detached,
        gradient_penalty,
        no_grad_part,
    )
} | {
    "backward_hook": backward_hook,
    "parameter_hook": parameter_hook,
    "forward_hook": forward_hook,
    "frozen_and_unused_layers": lambda: case(_Frozen()),
}
