"""Prove that a captured program computes what the user's model computes.

Two steps with the same seeds on both sides, an update of the weights between them: a gradient that tracing
lost shows in the first step, a state that it took for a constant in the second. Equality is to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ravnest_p2p.core.errors import CaptureError
from ravnest_p2p.model.compute import StageComputation
from ravnest_p2p.model.evaluation import EvalComputation, EvalProgram, Evaluation
from ravnest_p2p.model.explain import place
from ravnest_p2p.model.program import Program
from ravnest_p2p.model.stage_programs import stage_program
from ravnest_p2p.model.trace import EvalStep, Examples, TrainStep, named_tensors
from ravnest_p2p.model.watch import Watch, graph_of

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
) -> dict[str, Tensor]:
    """Run two steps on both sides and compare loss, gradients and buffers.

    Args:
        step: the user's model and loss, copied; it is changed.
        data: the inputs and labels by field name.
    Returns:
        The program's weights after both steps, which `step` has now as well.
    Raises:
        CaptureError: they differ; names the module and what differs.
    """
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
    return {name: tensor.detach() for name, tensor in params.items()} | buffers


def check_evaluation(
    step: EvalStep,
    evaluation: EvalProgram,
    weights: Mapping[str, Tensor],
    examples: Examples,
    expected: Evaluation,
) -> None:
    """Compare an evaluation with the model's own, on the examples and on other data.

    Args:
        step: the user's model and loss, copied, in eval mode; `weights` are its own by name.
        expected: what it gave for the examples themselves, with torch's generator seeded by 0.
    Raises:
        CaptureError: they differ; names the module and what differs.
    """
    computation = EvalComputation(evaluation.whole(), reseed=False)
    inputs, labels = examples
    data = {f"x{i}": t for i, t in enumerate(inputs)} | {f"y{i}": t for i, t in enumerate(labels)}
    for index in range(2):
        torch.manual_seed(index)
        found = evaluation.named(computation.forward(weights, weights, (), _rolled(data, index), 0))
        reassigned: list[str] = []
        if index:
            torch.manual_seed(index)
            with Watch(step.model, settled=True) as watch:
                expected = step.evaluated(*(tuple(_roll(t, index) for t in group) for group in examples))
            reassigned = watch.reassigned
        _compare("the loss in eval mode", found.loss, expected.loss, index, reassigned)
        if found.outputs.keys() != expected.outputs.keys():
            raise CaptureError("the model: in eval mode it returns other tensors from run to run")
        for name, tensor in expected.outputs.items():
            _compare(f"the output {name} in eval mode", found.outputs[name], tensor, index, reassigned)


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
    loss: Tensor = step(tuple(_roll(t, index) for t in inputs), tuple(_roll(t, index) for t in labels))
    return loss


def _rolled(data: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """Copies of the fields; for the second step with the samples in another order."""
    return {name: _roll(tensor, index) for name, tensor in data.items()}


def _roll(tensor: Tensor, index: int) -> Tensor:
    return tensor.roll(index, 0) if tensor.dim() else tensor.clone()


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
