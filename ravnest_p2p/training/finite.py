"""Whether tensors are finite, for less than it takes to read them twice.

`torch.isfinite(t).all()` takes thirty times as long as a sum, which is finite only where every element is;
so the sum is looked at, and the elements only where it is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

SMALL = 8192
"""Elements of a gradient up to which it is looked at for every micro-batch."""


def finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite; what holds no floating-point numbers always is."""
    if not tensor.is_floating_point() or math.isfinite(float(_sum(tensor))):
        return True
    return bool(torch.isfinite(tensor).all())


def usable(tensor: Tensor) -> bool:
    """As `finite`, but for -infinity, with which models mask what is to have no weight in a softmax."""
    if not tensor.is_floating_point() or math.isfinite(float(_sum(tensor))):
        return True
    return tensor.numel() == 0 or float(tensor.detach().max()) < math.inf


def small_finite(gradients: Iterable[Tensor | None]) -> bool:
    """Whether the small ones among gradients are finite; for a stage that sends no gradient back.

    What breaks on its way through a layer also breaks the gradient of its bias or of a norm's scale, and
    these are a thousandth of all parameters.
    """
    small = [g for g in gradients if g is not None and g.numel() <= SMALL]
    if not small:
        return True
    norms = torch.stack([norm.to(torch.float32) for norm in torch._foreach_norm(small)])
    return finite(norms) or all(map(finite, small))


def gradient_norm(gradients: Iterable[Tensor]) -> Tensor:
    """Norm of all elements together, as `torch.nn.utils.clip_grad_norm_` has it; 0 of none."""
    return torch.nn.utils.get_total_norm(list(gradients))


def with_others(norm: Tensor, others: float) -> Tensor:
    """The norm of the own gradient and of what others hold, whose norm is `others`."""
    return torch.hypot(norm, norm.new_tensor(others)) if others else norm


def _sum(tensor: Tensor) -> Tensor:
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    return tensor.detach().sum(dtype=wide)
