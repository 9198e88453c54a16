"""The optimizer of one stage: learning rate, the real step, and the same step computed early.

Problem: a micro-batch that starts before the previous batch is complete needs weights close to those which
that batch will leave behind. Solution: the optimizer's own next step, computed early from the gradients that
have arrived and, for those still missing, from the momentum, into a second copy ŵ. The live weights and the
optimizer's state are only read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ravnest_p2p.core.errors import BlobError, ConfigError
from ravnest_p2p.core.types import OptimizerSpec

OptimizerState = Mapping[str, Mapping[str, Tensor]]

SLOTS: dict[str, frozenset[str]] = {
    "sgd": frozenset({"momentum_buffer"}),
    "adam": frozenset({"step", "exp_avg", "exp_avg_sq"}),
    "adamw": frozenset({"step", "exp_avg", "exp_avg_sq"}),
}
"""State tensors of each optimizer, of their parameter's shape and dtype; `step` is a float32 scalar."""


def learning_rate(spec: OptimizerSpec, version: int) -> float:
    """Learning rate of the update that turns weights of `version` into `version` + 1.

    Linear warm-up over `warmup_updates` (the first update already has a share of the rate), then constant, or
    falling to 0 at update `schedule_updates`, linearly or as half a cosine.

    Raises:
        ConfigError: unknown schedule, or one that ends before its warm-up does.
    """
    if version < spec.warmup_updates:
        return spec.lr * (version + 1) / spec.warmup_updates
    if spec.schedule == "constant":
        return spec.lr
    if spec.schedule not in ("linear", "cosine"):
        raise ConfigError(f"unknown schedule {spec.schedule!r}; use constant, linear or cosine")
    length = spec.schedule_updates - spec.warmup_updates
    if length <= 0:
        raise ConfigError(
            f"schedule {spec.schedule!r} needs schedule_updates above warmup_updates, "
            f"not {spec.schedule_updates} and {spec.warmup_updates}"
        )
    progress = min(1.0, (version - spec.warmup_updates) / length)
    if spec.schedule == "linear":
        return spec.lr * (1.0 - progress)
    return spec.lr * 0.5 * (1.0 + math.cos(math.pi * progress))


def make_optimizer(spec: OptimizerSpec, params: Iterable[Tensor]) -> torch.optim.Optimizer:
    """The torch.optim optimizer that `spec` names; its learning rate is set before each step.

    Raises:
        ConfigError: unknown optimizer or schedule, or numbers that it refuses.
    """
    lr = learning_rate(spec, spec.warmup_updates)
    try:
        if spec.name == "sgd":
            return torch.optim.SGD(params, lr=lr, momentum=spec.momentum, weight_decay=spec.weight_decay)
        if spec.name in ("adam", "adamw"):
            kind = torch.optim.Adam if spec.name == "adam" else torch.optim.AdamW
            return kind(params, lr=lr, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay)
    except ValueError as error:
        raise ConfigError(f"optimizer {spec.name!r}: {error}") from error
    raise ConfigError(f"unknown optimizer {spec.name!r}; use sgd, adam or adamw")


def checked_state(spec: OptimizerSpec, params: Mapping[str, Tensor], state: OptimizerState) -> None:
    """Refuse a state that the optimizer could not have written for these parameters.

    Raises:
        BlobError: unknown parameter or slot, an incomplete set of slots, or another shape or dtype.
    """
    for name, slots in state.items():
        if name not in params:
            raise BlobError(f"optimizer state for unknown parameter {name!r}")
        if slots and set(slots) != SLOTS[spec.name]:
            raise BlobError(f"optimizer state of {name!r} has slots {sorted(slots)} for {spec.name!r}")
        for slot, tensor in slots.items():
            like = torch.empty((), dtype=torch.float32) if slot == "step" else params[name]
            if tensor.shape != like.shape or tensor.dtype != like.dtype:
                raise BlobError(
                    f"optimizer state {slot!r} of {name!r} is {tensor.dtype} {tuple(tensor.shape)}, "
                    f"not {like.dtype} {tuple(like.shape)}"
                )


@torch.no_grad()
def early_step(
    spec: OptimizerSpec,
    params: Mapping[str, Tensor],
    sums: Mapping[str, Tensor],
    state: OptimizerState,
    *,
    version: int,
    done: int,
    of: int,
) -> dict[str, Tensor]:
    """ŵ: the optimizer's next step, computed when `done` of `of` micro-batches have left their gradients.

    With G = `sums`, n = `done`, m = `of`, and η the learning rate of update `version`:

    * Adam, AdamW, with t updates applied to the parameter:
      ĝ = clip(G + (1 − n/m)·M/(1−β₁ᵗ));  M̂ = β₁M + (1−β₁)ĝ;  V̂ = β₂V + (1−β₂)ĝ²;
      ŵ = (1−ηλ)w − η·[M̂/(1−β₁ᵗ⁺¹)] / (√(V̂/(1−β₂ᵗ⁺¹)) + ε).
      Adam without decoupling has no factor (1−ηλ), and ĝ + λw in place of ĝ in M̂ and V̂.
    * SGD with momentum μ, t = `version`, whose buffer B = Σ μᵗ⁻ʲ(gⱼ + λw) weighs (1−μᵗ)/(1−μ) in all:
      ĝ = clip(G + (1 − n/m)·B·(1−μ)/(1−μᵗ));  B̂ = μB + ĝ + λw;  ŵ = w − ηB̂.

    Where the decay is part of the gradient (SGD, Adam), the history holds it too, so λw is taken off the
    history before it stands in for missing gradients. Without a history (first update; SGD with μ = 0) the
    mean of what arrived stands in: ĝ = clip(G·m/n), or 0 where nothing did. clip is torch's, over this stage.

    Args:
        params: live weights; only read.
        sums: Σ ∇Lᵢ/m by parameter name; a parameter without gradient may be absent.
        state: the optimizer's state by parameter name; only read.
    Returns:
        New tensors, by name, for every parameter that the step would move; with n = m bit-equal to the step.
    """
    missing = 1.0 - done / of
    estimates: dict[str, Tensor] = {}
    for name, weight in params.items():
        if not weight.is_floating_point():
            continue
        total, slots = sums.get(name), state.get(name, {})
        if total is None and not slots and done:
            continue
        history = _mean_gradient(spec, weight, slots, version)
        estimate = torch.zeros_like(weight) if total is None else total.clone()
        if history is not None:
            estimate.add_(history, alpha=missing)
        elif done:
            estimate.mul_(of / done)
        estimates[name] = estimate
    if spec.clip_norm is not None and estimates:
        gradients = list(estimates.values())
        norm = torch.nn.utils.get_total_norm(gradients)
        torch._foreach_mul_(gradients, torch.clamp(spec.clip_norm / (norm + 1e-6), max=1.0))
    rate = learning_rate(spec, version)
    move = _sgd if spec.name == "sgd" else _adam
    return {n: move(spec, rate, params[n], gradient, state.get(n, {})) for n, gradient in estimates.items()}


def _mean_gradient(
    spec: OptimizerSpec, weight: Tensor, slots: Mapping[str, Tensor], version: int
) -> Tensor | None:
    if spec.name == "sgd":
        buffer = slots.get("momentum_buffer")
        if buffer is None or version == 0:
            return None
        mean = buffer * ((1.0 - spec.momentum) / (1.0 - spec.momentum**version))
    else:
        if not slots or float(slots["step"]) == 0.0:
            return None
        mean = slots["exp_avg"] / (1.0 - spec.betas[0] ** float(slots["step"]))
    if spec.weight_decay and spec.name != "adamw":
        mean.add_(weight, alpha=-spec.weight_decay)
    return mean


def _sgd(
    spec: OptimizerSpec, rate: float, weight: Tensor, gradient: Tensor, slots: Mapping[str, Tensor]
) -> Tensor:
    if spec.weight_decay:
        gradient = gradient.add(weight, alpha=spec.weight_decay)
    buffer = slots.get("momentum_buffer")
    if spec.momentum and buffer is not None:
        gradient = (buffer * spec.momentum).add_(gradient)
    return weight.add(gradient, alpha=-rate)


def _adam(
    spec: OptimizerSpec, rate: float, weight: Tensor, gradient: Tensor, slots: Mapping[str, Tensor]
) -> Tensor:
    beta1, beta2 = spec.betas
    moved = weight.clone()
    if spec.weight_decay and spec.name == "adamw":
        moved.mul_(1 - rate * spec.weight_decay)
    elif spec.weight_decay:
        gradient = gradient.add(weight, alpha=spec.weight_decay)
    step = (float(slots["step"]) if slots else 0.0) + 1.0
    first = slots["exp_avg"] if slots else torch.zeros_like(weight)
    second = slots["exp_avg_sq"] if slots else torch.zeros_like(weight)
    first = first.lerp(gradient, 1 - beta1)
    second = (second * beta2).addcmul_(gradient, gradient, value=1 - beta2)
    denominator = (second.sqrt() / (1 - beta2**step) ** 0.5).add_(spec.eps)
    return moved.addcdiv_(first, denominator, value=-rate / (1 - beta1**step))
