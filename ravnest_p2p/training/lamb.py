"""LAMB: Adam's direction, with each tensor's step as long as the tensor itself times the learning rate.

A parameter is never cut between stages, so its trust ratio does not depend on how the model is cut.

Source: You et al., Large Batch Optimization for Deep Learning, arXiv 1904.00962, algorithm 2, φ(z) = z. As in
its authors' code for BERT, tensors that are exempt from weight decay take Adam's step length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Lamb(torch.optim.Optimizer):
    """r = M̂/(√V̂ + ε) + λw;  w ← w − η·(‖w‖/‖r‖)·r, the ratio being 1 where either norm is 0.

    Args:
        adapt: False leaves the trust ratio out.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        adapt: bool = True,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "adapt": adapt}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                slots = self.state[weight]
                if not slots:
                    slots["step"] = torch.tensor(0.0)
                    slots["exp_avg"] = torch.zeros_like(weight)
                    slots["exp_avg_sq"] = torch.zeros_like(weight)
                slots["step"] += 1
                count = float(slots["step"])
                first = slots["exp_avg"].lerp_(weight.grad, 1 - beta1)
                second = slots["exp_avg_sq"].mul_(beta2).addcmul_(weight.grad, weight.grad, value=1 - beta2)
                denominator = (second / (1 - beta2**count)).sqrt_().add_(group["eps"])
                update = (first / (1 - beta1**count)).div_(denominator)
                update.add_(weight, alpha=group["weight_decay"])
                if group["adapt"]:
                    length, size = weight.norm(), update.norm()
                    ratio = length / size
                    update.mul_(torch.where((length > 0) & (size > 0), ratio, torch.ones_like(ratio)))
                weight.add_(update, alpha=-group["lr"])
