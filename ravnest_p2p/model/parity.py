"""Prove that a captured program computes what the user's model computes.

Two steps with the same seeds on both sides, an update of the weights between them: a gradient that tracing
lost shows in the first step, a state that it took for a constant in the second. Equality is to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ravnest_p2p.core.errors import CaptureError
from ravnest_p2p.model.compute import StageComputation
from ravnest_p2p.model.explain import place
from ravnest_p2p.model.program import Program
from ravnest_p2p.model.split import stage_program
from ravnest_p2p.model.watch import Watch, graph_of

if TYPE_CHECKING:
    from ravnest_p2p.model.capture import TrainStep

_STEP = 0.01
_FIX = (
    "usual causes: a Python counter or global in forward(), a tensor kept from the step before, or a "
    "gradient taken inside; write it with plain tensor operations and buffers"
)


def check_parity(
    step: TrainStep,
    program: Program,
    weights: Mapping[str, Tensor],
    inputs: tuple[Tensor, ...],
    labels: tuple[Tensor, ...],
    data: Mapping[str, Tensor],
) -> None:
    """Run two steps on both sides and compare loss, gradients and buffers.

    Args:
        step: the user's model and loss, copied; it is changed.
        data: the inputs and labels by field name.
    Raises:
        CaptureError: they differ; names the module and what differs.
    """
    from ravnest_p2p.model.capture import named_tensors

    computation = StageComputation(stage_program(program, 0, len(program.layer_bounds)), reseed=False)
    eager = named_tensors(step)
    params = {leaf.name: weights[leaf.name].clone().requires_grad_() for leaf in program.params}
    buffers = {leaf.name: weights[leaf.name].clone() for leaf in program.buffers}
    trained = [name for name, tensor in eager.items() if tensor.requires_grad]
    for index in range(2):
        torch.manual_seed(index)
        (loss,) = computation.forward(params, buffers, (), _rolled(data, index), 0)
        found = dict(
            zip(params, torch.autograd.grad(loss, list(params.values()), allow_unused=True), strict=True)
        )
        torch.manual_seed(index)
        with Watch(step.model, settled=index > 0) as watch:
            expected_loss = _eager(step, inputs, labels, index)
        _check_leaves(expected_loss, eager)
        grads = torch.autograd.grad(expected_loss, [eager[n] for n in trained], allow_unused=True)
        expected = dict(zip(trained, grads, strict=True))
        _compare("the loss", loss.detach(), expected_loss.detach(), index, watch.reassigned)
        for name in trained:
            if name in found or not any(name in group for group in program.tied):
                _compare(
                    f"the gradient of {name!r}", found.get(name), expected[name], index, watch.reassigned
                )
        for name, tensor in buffers.items():
            if name in eager:
                _compare(f"the buffer {name!r}", tensor, eager[name].detach(), index, watch.reassigned)
        with torch.no_grad():
            for name, tensor in params.items():
                gradient = expected[name]
                if gradient is not None:
                    tensor -= _STEP * gradient
                    eager[name] -= _STEP * gradient


def _check_leaves(loss: Tensor, eager: Mapping[str, Tensor]) -> None:
    """Refuse trained tensors from outside of the model, which tracing takes for constants."""
    known = {id(tensor) for tensor in eager.values()}
    for function in graph_of(loss):
        variable = getattr(function, "variable", None)
        if variable is not None and id(variable) not in known:
            raise CaptureError(
                f"the model: a trained tensor of shape {tuple(variable.shape)} is no parameter of the model; "
                "register it as nn.Parameter of one of its modules"
            )


def _eager(step: TrainStep, inputs: tuple[Tensor, ...], labels: tuple[Tensor, ...], index: int) -> Tensor:
    fed = {f"x{i}": t for i, t in enumerate(inputs)} | {f"y{i}": t for i, t in enumerate(labels)}
    rolled = _rolled(fed, index)
    loss: Tensor = step(
        tuple(rolled[f"x{i}"] for i in range(len(inputs))), tuple(rolled[f"y{i}"] for i in range(len(labels)))
    )
    return loss


def _rolled(data: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """Copies of the fields; for the second step with the samples in another order."""
    return {name: t.roll(index, 0) if t.dim() else t.clone() for name, t in data.items()}


def _compare(
    what: str, found: Tensor | None, expected: Tensor | None, index: int, reassigned: list[str]
) -> None:
    if found is None and expected is None:
        return
    if found is not None and expected is not None:
        if found.shape == expected.shape and torch.equal(found.nan_to_num(7e6), expected.nan_to_num(7e6)):
            return
        gap = f"by up to {(found.double() - expected.double()).abs().max().item():.3g}"
    else:
        gap = "in being there at all"
    if reassigned:
        path, _, name = reassigned[0].rpartition(".")
        raise CaptureError(
            f"{place(path)}: forward() puts another tensor in the place of {name!r} and reads it in the next "
            f"step; register it by register_buffer() and write in place: self.{name}.copy_(…)"
        )
    raise CaptureError(
        f"{_module(what)}: {what} of the captured program differs {gap} from the model's own "
        f"in step {index + 1}; {_FIX}"
    )


def _module(what: str) -> str:
    name = what.split("'")[1] if "'" in what else ""
    return place(name.rpartition(".")[0])
