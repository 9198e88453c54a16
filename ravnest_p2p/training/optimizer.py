"""The optimizer of one stage: the real step, and the same step computed early.

Problem: a micro-batch that starts before the previous batch is complete needs weights close to those which
that batch will leave behind. Solution: the optimizer's own next step, taken early by the same torch optimizer
on copies, from the gradients that have arrived and, for those still missing, from the momentum. The live
weights and the optimizer's state are only read. Since nothing is computed by a second formula, the early step
of a complete batch is the real one, bit for bit, for every optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ravnest_p2p.core.errors import BlobError, ConfigError
from ravnest_p2p.core.optimizers import check_optimizer, decays, scheduled
from ravnest_p2p.core.types import OptimizerSpec
from ravnest_p2p.training.finite import with_others
from ravnest_p2p.training.lamb import Lamb
from ravnest_p2p.training.muon import muon_class

OptimizerState = Mapping[str, Mapping[str, Tensor]]

_MOMENTS = frozenset({"step", "exp_avg", "exp_avg_sq"})
SLOTS: dict[str, frozenset[str]] = {
    "sgd": frozenset({"momentum_buffer"}),
    "adam": _MOMENTS,
    "adamw": _MOMENTS,
    "muon": frozenset({"momentum_buffer"}),
    "lamb": _MOMENTS,
}
"""State tensors of each rule, of their parameter's shape and dtype; `step` is a float32 scalar."""


_FIRST_MOMENTS = frozenset({"exp_avg", "momentum_buffer"})


class Rule(NamedTuple):
    """How one parameter is stepped.

    Attributes:
        kind: an optimizer's name; Muon leaves what is no hidden matrix to "adamw".
        decays: whether the job's weight decay is for it.
    """

    kind: str
    decays: bool


def rule_of(spec: OptimizerSpec, name: str, weight: Tensor, matrices: Collection[str]) -> Rule:
    """How the parameter is stepped; it follows from name, shape and `matrices`, so not from the cut."""
    kind = "adamw" if spec.name == "muon" and name not in matrices else spec.name
    return Rule(kind, decays(spec, name, weight.ndim))


class StageOptimizer:
    """One torch optimizer for each rule that a stage's parameters have.

    Args:
        params: what is trained, by name.
        matrices: names of the model's hidden matrices, which Muon moves.
    Raises:
        ConfigError: the spec does not hold, or torch refuses it for these parameters.
    """

    def __init__(
        self, spec: OptimizerSpec, params: Mapping[str, Tensor], matrices: Collection[str] = ()
    ) -> None:
        check_optimizer(spec)
        self._spec = spec
        self._params = params
        self._rules = {name: rule_of(spec, name, weight, matrices) for name, weight in params.items()}
        self._optimizers = {
            rule: _build(spec, rule, [params[name] for name, its in self._rules.items() if its == rule])
            for rule in dict.fromkeys(self._rules.values())
        }

    def step(self, version: int) -> None:
        """Update every parameter that has a `.grad`, as update number `version`, and drop the gradients."""
        moved = [weight for weight in self._params.values() if weight.grad is not None]
        for optimizer in self._optimizers.values():
            _step(self._spec, optimizer, version)
            optimizer.zero_grad(set_to_none=True)
        # torch's fused kernels do not tell autograd that they wrote to the weights.
        increment_version(moved)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Slots by parameter name, sharing memory; parameters never stepped are absent."""
        slots = {
            name: self._optimizers[self._rules[name]].state.get(weight, {})
            for name, weight in self._params.items()
        }
        kept = {n: {k: v for k, v in s.items() if isinstance(v, Tensor)} for n, s in slots.items()}
        return {name: its for name, its in kept.items() if its}

    def slot(self, name: str, slot: str) -> Tensor | None:
        """One of these, sharing memory; None where the parameter was never stepped."""
        found = self._optimizers[self._rules[name]].state.get(self._params[name], {}).get(slot)
        return found if isinstance(found, Tensor) else None

    @property
    def momentum_slots(self) -> dict[str, str]:
        """Which slot of each parameter is the mean gradient, once it is stepped."""
        slots = {name: SLOTS[rule.kind] & _FIRST_MOMENTS for name, rule in self._rules.items()}
        return {name: slot for name, (slot,) in slots.items()}

    def restore(self, state: OptimizerState) -> None:
        """Go on from copies of these slots.

        Raises:
            BlobError: unknown parameter or slot, an incomplete set of slots, or another shape or dtype.
        """
        for name, slots in state.items():
            self._check(name, slots)
        for name, slots in state.items():
            weight = self._params[name]
            self._optimizers[self._rules[name]].state[weight] = {
                slot: tensor.detach().clone().to("cpu" if slot == "step" else weight.device)
                for slot, tensor in slots.items()
            }

    def _check(self, name: str, slots: Mapping[str, Tensor]) -> None:
        if name not in self._params:
            raise BlobError(f"optimizer state for unknown parameter {name!r}")
        kind = self._rules[name].kind
        if slots and set(slots) != SLOTS[kind]:
            raise BlobError(f"optimizer state of {name!r} has slots {sorted(slots)} for {kind!r}")
        for slot, tensor in slots.items():
            like = torch.empty((), dtype=torch.float32) if slot == "step" else self._params[name]
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
    matrices: Collection[str] = (),
    others: float = 0.0,
    keep: Callable[[str, Tensor], Tensor] = lambda _, weight: weight,
) -> dict[str, Tensor]:
    """ŵ: the optimizer's next step, computed when `done` of `of` micro-batches have left their gradients.

    With G = `sums`, n = `done`, m = `of`, the gradient of the whole batch is estimated as
    ĝ = clip(G + (1 − n/m)·ḡ), where ḡ is the mean gradient that the optimizer remembers:

    * Adam, AdamW, LAMB, after t updates of the parameter: ḡ = M/(1−β₁ᵗ);
    * Muon, whose buffer is such a mean too, with t = `version`: ḡ = B/(1−μᵗ);
    * SGD with momentum μ, t = `version`, whose buffer B = Σ μᵗ⁻ʲ(gⱼ + λw): ḡ = B·(1−μ)/(1−μᵗ).

    Where the decay is part of the gradient (SGD, Adam), the history holds it too, so λw is taken off ḡ.
    Without a history (first update; SGD with μ = 0) the mean of what arrived stands in: ĝ = clip(G·m/n), or 0
    where nothing did. clip is torch's, over this stage and what is known of the others. Then the optimizer
    steps a copy of the weight, with a copy of its state, by ĝ: beyond what is kept of ŵ it takes the memory
    of one parameter and its state at a time, for which every ĝ is computed once for the norm and once for the
    step.

    Args:
        params: live weights; only read.
        sums: Σ ∇Lᵢ/m by parameter name; a parameter without gradient may be absent.
        state: the optimizer's state by parameter name; only read.
        matrices: as for `StageOptimizer`.
        others: norm of the other stages' gradients, where that counts.
        keep: what to keep of a parameter's ŵ, given its name; the tensor itself by default.
    Returns:
        New tensors, by name, for every parameter that the step would move; with n = m bit-equal to the step.
    """
    rules = {
        name: rule_of(spec, name, weight, matrices)
        for name, weight in params.items()
        if weight.is_floating_point()
    }
    missing = 1.0 - done / of

    def estimate(name: str) -> Tensor:
        weight, total = params[name], sums.get(name)
        history = _mean_gradient(spec, rules[name], weight, state.get(name, {}), version)
        found = torch.zeros_like(weight) if total is None else total.clone()
        if history is not None:
            found.add_(history, alpha=missing)
        elif done:
            found.mul_(of / done)
        return found

    names = [name for name in rules if not done or name in sums or state.get(name)]
    scale = None
    if spec.clip_norm is not None and names:
        norm = torch.linalg.vector_norm(torch.stack([torch._foreach_norm([estimate(n)])[0] for n in names]))
        scale = torch.clamp(spec.clip_norm / (with_others(norm, others) + 1e-6), max=1.0)
    steppers: dict[Rule, torch.optim.Optimizer] = {}
    moved: dict[str, Tensor] = {}
    for name in names:
        weight, rule = params[name].detach().clone(), rules[name]
        if rule not in steppers:
            steppers[rule] = _build(spec, rule, [weight])
        stepper = steppers[rule]
        weight.grad = estimate(name) if scale is None else estimate(name).mul_(scale)
        stepper.param_groups[0]["params"] = [weight]
        stepper.state.clear()
        if state.get(name):
            stepper.state[weight] = {slot: tensor.clone() for slot, tensor in state[name].items()}
        _step(spec, stepper, version)
        weight.grad = None
        moved[name] = keep(name, weight)
    return moved


def _mean_gradient(
    spec: OptimizerSpec, rule: Rule, weight: Tensor, slots: Mapping[str, Tensor], version: int
) -> Tensor | None:
    if "momentum_buffer" in slots:
        if version == 0:
            return None
        weighing = (1.0 - spec.momentum) if rule.kind == "sgd" else 1.0
        mean = slots["momentum_buffer"] * (weighing / (1.0 - spec.momentum**version))
    else:
        if not slots or float(slots["step"]) < 1.0:
            return None
        mean = slots["exp_avg"] / (1.0 - spec.betas[0] ** float(slots["step"]))
    if rule.decays and spec.weight_decay and rule.kind in ("sgd", "adam"):
        mean.add_(weight, alpha=-spec.weight_decay)
    return mean


def _build(spec: OptimizerSpec, rule: Rule, params: list[Tensor]) -> torch.optim.Optimizer:
    """torch's optimizer for the rule; on the CPU its fused form, a fifth of the time."""
    decay = spec.weight_decay if rule.decays else 0.0
    fused = True if all(param.device.type == "cpu" for param in params) else None
    try:
        match rule.kind:
            case "sgd":
                return torch.optim.SGD(
                    params, spec.lr, momentum=spec.momentum, weight_decay=decay, fused=fused
                )
            case "muon":
                return muon_class()(params, lr=spec.lr, momentum=spec.momentum, weight_decay=decay)
            case "lamb":
                return Lamb(params, spec.lr, spec.betas, spec.eps, decay, adapt=rule.decays)
        kind = torch.optim.Adam if rule.kind == "adam" else torch.optim.AdamW
        rate = spec.adamw_lr if spec.name == "muon" else spec.lr
        return kind(params, rate, betas=spec.betas, eps=spec.eps, weight_decay=decay, fused=fused)
    except ValueError as error:
        raise ConfigError(f"optimizer {spec.name!r}: {error}") from error


def _step(spec: OptimizerSpec, optimizer: torch.optim.Optimizer, version: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = scheduled(spec, optimizer.defaults["lr"], version)
    optimizer.step()
