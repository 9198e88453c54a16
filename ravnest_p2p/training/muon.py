"""Muon for a torch that does not ship it yet (before 2.9); with the same arithmetic, bit for bit.

Source: Keller Jordan, kellerjordan.github.io/posts/muon; torch.optim.Muon.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_A, _B, _C = 3.4445, -4.7750, 2.0315
"""Of the quintic a·X + b·(XXᵀ)X + c·(XXᵀ)²X, steepest at 0: five steps bring singular values near 1."""


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """Near UVᵀ, where UΣVᵀ is the matrix: its singular values come to about 0.7 to 1.2.

    Returns:
        New tensor of the matrix's shape, bfloat16.
    """
    tall = matrix.size(0) > matrix.size(1)
    x = matrix.bfloat16()
    x = x.T if tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.T if tall else x


class PlainMuon(torch.optim.Optimizer):
    """As torch.optim.Muon: momentum, Nesterov, five Newton–Schulz steps, decoupled weight decay.

    Args:
        params: matrices only.
    Raises:
        ValueError: a parameter is not a matrix.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, weight_decay: float = 0.1, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for group in self.param_groups:
            if any(weight.ndim != 2 for weight in group["params"]):
                raise ValueError("Muon is for matrices only")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                slots = self.state[weight]
                if not slots:
                    slots["momentum_buffer"] = torch.zeros_like(weight.grad)
                buffer = slots["momentum_buffer"].lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonalised(weight.grad.lerp(buffer, group["momentum"]))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                rows, columns = weight.shape
                weight.add_(update, alpha=-group["lr"] * max(1, rows / columns) ** 0.5)


def muon_class() -> Callable[..., torch.optim.Optimizer]:
    """torch's own Muon where this torch has it."""
    return getattr(torch.optim, "Muon", PlainMuon)
