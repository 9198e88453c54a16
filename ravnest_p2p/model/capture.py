"""Turn a user's model into a package that can travel.

Problem: a model is Python code, and only data may travel. Solution: trace one train step, loss included, with
`torch.export` on a copy of the model, lower it to our own program, and prove on two seeded steps that the
program computes the same loss, gradients and buffers to the last bit. What tracing gets wrong without a word
(Python counters, custom autograd functions) is found there and refused. The user's model is never touched.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ravnest_p2p.core.errors import CaptureError, PackageError
from ravnest_p2p.model import ops
from ravnest_p2p.model.bounds import with_bounds
from ravnest_p2p.model.builder import Value
from ravnest_p2p.model.capture_evaluation import capture_evaluation
from ravnest_p2p.model.explain import failed
from ravnest_p2p.model.package import Package
from ravnest_p2p.model.parity import check_parity
from ravnest_p2p.model.program import Program
from ravnest_p2p.model.trace import Traced, TrainStep, copied_step, modules_of, storages, trace
from ravnest_p2p.model.watch import Watch, refuse_custom_functions, refuse_unfit


def capture(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    *,
    loss: Callable[..., Tensor] | None,
    example_labels: tuple[Tensor, ...] = (),
    evaluation: bool = True,
) -> Package:
    """Capture one train step of a model, and its evaluation, as a package.

    A model in train mode keeps the mode of each of its modules (frozen BatchNorm stays frozen); one in eval
    mode is captured in train mode. Model, random state and examples are left as they were.

    The evaluation is the same in eval mode, without gradients: the loss, and the tensors that the model
    returns. A model that trains but cannot be captured so is a package without; its `evaluation_refusal`
    says why.

    Args:
        example_inputs: one micro-batch each; the sizes become fixed. Fields "x0", "x1", … of the package.
        loss: called as loss(output, *labels), returns a scalar. None: the model takes inputs and labels and
            returns the loss, or an object with the loss as attribute `loss`.
        example_labels: fields "y0", "y1", ….
        evaluation: False saves its time.
    Returns:
        Programs and copies of the weights, on the CPU.
    Raises:
        CaptureError: the model cannot travel faithfully; names the module, the cause and the fix.
    """
    inputs = tuple(_example(t, "input") for t in example_inputs)
    labels = tuple(_example(t, "label") for t in example_labels)
    refuse_unfit(model)
    with randomness_restored(), _unvalidated_distributions():
        _try_eagerly(copied_step(model, loss), inputs, labels)
        owned = storages(TrainStep(model, loss))
        traced = trace(copied_step(model, loss), inputs, labels, owned, "constant")
        program = finished(traced)
        weights = {
            leaf.name: traced.tensors[leaf.name].detach().clone(memory_format=torch.contiguous_format)
            for leaf in program.params + program.buffers
        }
        del traced
        data = {f"x{i}": t for i, t in enumerate(inputs)} | {f"y{i}": t for i, t in enumerate(labels)}
        program = with_bounds(program, weights, data)
        step = copied_step(model, loss)
        fresh = partial(copied_step, model, loss)
        after, exact = check_parity(step, fresh, program, weights, inputs, labels, data)
        try:
            Program.from_json(program.to_json())
        except PackageError as error:
            raise CaptureError(f"other peers would refuse the captured program: {error}") from error
        refusal = "it was not asked for"
        package = Package(program, weights, compared=True, exact=exact, evaluation_refusal=refusal)
        if not evaluation:
            return package
        try:
            found, more = capture_evaluation(fresh(), step, program, after, (inputs, labels), owned)
        except CaptureError as error:
            return replace(package, evaluation_refusal=str(error))
    return replace(package, weights=weights | more, evaluation=found, evaluation_refusal="")


def _example(tensor: Any, role: str) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise CaptureError(f"example {role}: {type(tensor).__name__} is not a tensor; pass tensors only")
    if tensor.dtype not in ops.DTYPES.values():
        raise CaptureError(f"example {role}: dtype {tensor.dtype} cannot travel; convert it to a real dtype")
    return tensor.detach().cpu().clone()


def _try_eagerly(step: TrainStep, inputs: tuple[Tensor, ...], labels: tuple[Tensor, ...]) -> None:
    """Run the model once by itself, so that its own faults are told from those of tracing."""
    given = tuple(t.clone() for t in inputs), tuple(t.clone() for t in labels)
    with Watch(step.model, settled=False):
        try:
            loss = step(*given)
        except CaptureError:
            raise
        except Exception as error:
            raise CaptureError(failed(error, modules_of(step))) from error
    if isinstance(loss, Tensor):
        refuse_custom_functions(loss)


def finished(traced: Traced) -> Program:
    """The traced train step as a program; its `layer_bounds` are still empty.

    Raises:
        CaptureError: it does not return a scalar loss that depends on parameters.
    """
    if len(traced.results) != 1 or not isinstance(traced.results[0], Value):
        raise CaptureError("the loss is not one tensor; return the scalar loss alone")
    spec = traced.builder.spec(traced.results[0])
    if spec.shape != ():
        raise CaptureError(f"the loss has shape {spec.shape}; reduce it to a scalar, such as by .mean()")
    if not spec.differentiable:
        raise CaptureError(
            "the loss depends on no parameter; check for detach(), no_grad() or frozen weights"
        )
    parts = traced.builder.pruned(traced.results, lambda leaf: leaf.kind == "param")
    buffers = {leaf.name for leaf in parts.buffers}
    names = buffers | {leaf.name for leaf in parts.params}
    return Program(
        inputs=parts.inputs,
        params=parts.params,
        buffers=parts.buffers,
        nodes=parts.nodes,
        output=parts.results[0],
        tied=tuple(group for group in traced.tied if group[0] in names),
        transient=tuple(sorted(traced.transient & buffers)),
    )


@contextmanager
def _unvalidated_distributions() -> Iterator[None]:
    """torch.distributions check their arguments by an `if` on tensor values, which cannot be traced."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


@contextmanager
def randomness_restored() -> Iterator[None]:
    """Leave Python's, numpy's and torch's generators as they were."""
    python, arrays = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(arrays)
