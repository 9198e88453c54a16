"""Turn a user's model into a package that can travel.

Problem: a model is Python code, and only data may travel. Solution: trace one train step, loss included, with
`torch.export` on a copy of the model, lower it to our own program, and prove on two seeded steps that the
program computes the same loss, gradients and buffers to the last bit. What tracing gets wrong without a word
(Python counters, custom autograd functions) is found there and refused. The user's model is never touched.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.export.graph_signature import InputKind

from ravnest_p2p.core.errors import CaptureError, PackageError
from ravnest_p2p.model import ops
from ravnest_p2p.model.bounds import with_bounds
from ravnest_p2p.model.builder import Builder, Value
from ravnest_p2p.model.explain import brief, explain, failed, place
from ravnest_p2p.model.lower import Lowering
from ravnest_p2p.model.package import Package
from ravnest_p2p.model.parity import check_parity
from ravnest_p2p.model.program import Leaf, Program
from ravnest_p2p.model.watch import Watch, refuse_custom_functions, refuse_unfit


def capture(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    *,
    loss: Callable[..., Tensor] | None,
    example_labels: tuple[Tensor, ...] = (),
) -> Package:
    """Capture one train step of a model as a package.

    A model in train mode keeps the mode of each of its modules (frozen BatchNorm stays frozen); one in eval
    mode is captured in train mode. Model, random state and examples are left as they were.

    Args:
        example_inputs: one micro-batch each; the sizes become fixed. Fields "x0", "x1", … of the package.
        loss: called as loss(output, *labels), returns a scalar. None: the model takes inputs and labels and
            returns the loss, or an object with the loss as attribute `loss`.
        example_labels: fields "y0", "y1", ….
    Returns:
        Program and copies of the weights, on the CPU.
    Raises:
        CaptureError: the model cannot travel faithfully; names the module, the cause and the fix.
    """
    inputs = tuple(_example(t, "input") for t in example_inputs)
    labels = tuple(_example(t, "label") for t in example_labels)
    refuse_unfit(model)
    with _randomness_restored(), _unvalidated_distributions():
        _try_eagerly(_copied_step(model, loss), inputs, labels)
        owned = _storages(TrainStep(model, loss))
        program, weights = _trace(_copied_step(model, loss), inputs, labels, owned)
        data = {f"x{i}": t for i, t in enumerate(inputs)} | {f"y{i}": t for i, t in enumerate(labels)}
        program = with_bounds(program, weights, data)
        check_parity(_copied_step(model, loss), program, weights, inputs, labels, data)
    try:
        Program.from_json(program.to_json())
    except PackageError as error:
        raise CaptureError(f"other peers would refuse the captured program: {error}") from error
    return Package(program, weights, compared=True)


class TrainStep(nn.Module):
    """The user's model and loss as one module that maps inputs and labels to the loss."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor] | None) -> None:
        super().__init__()
        self.model = model
        self.loss: Any = loss

    def forward(self, inputs: tuple[Tensor, ...], labels: tuple[Tensor, ...]) -> Tensor:
        if self.loss is not None:
            value: Tensor = self.loss(self.model(*inputs), *labels)
            return value
        output = self.model(*inputs, *labels)
        return output if isinstance(output, Tensor) else output.loss


def canonical_name(name: str) -> str:
    """Name in the user's state_dict; tensors of a loss module are put under "loss::"."""
    return name.removeprefix("model.") if name.startswith("model.") else "loss::" + name.removeprefix("loss.")


def canonical_path(path: str) -> str:
    """Path of a module in the user's model; "loss" for a loss module."""
    return path.removeprefix("model").removeprefix(".")


def named_tensors(step: TrainStep) -> dict[str, Tensor]:
    """All parameters and buffers by canonical name, a shared one under each of its names."""
    found: dict[str, Tensor] = {}
    for name, tensor in step.named_parameters(remove_duplicate=False):
        found[canonical_name(name)] = tensor
    for name, buffer in step.named_buffers(remove_duplicate=False):
        found[canonical_name(name)] = buffer
    return found


def _example(tensor: Any, role: str) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise CaptureError(f"example {role}: {type(tensor).__name__} is not a tensor; pass tensors only")
    if tensor.dtype not in ops.DTYPES.values():
        raise CaptureError(f"example {role}: dtype {tensor.dtype} cannot travel; convert it to a real dtype")
    return tensor.detach().cpu().clone()


def _copied_step(model: nn.Module, loss: Callable[..., Tensor] | None) -> TrainStep:
    try:
        copied, copied_loss = copy.deepcopy((model, loss))
    except Exception as error:
        raise CaptureError(_uncopied(model, error)) from error
    if not model.training:
        copied.train()
    return TrainStep(copied, copied_loss).cpu()


def _modules(step: TrainStep) -> dict[str, nn.Module]:
    return {canonical_path(path): module for path, module in step.named_modules()}


def _storages(step: TrainStep) -> dict[int, str]:
    """Names of the user's own tensors by storage; a copy of the model does not share them."""
    return {tensor.untyped_storage()._cdata: name for name, tensor in named_tensors(step).items()}


def _try_eagerly(step: TrainStep, inputs: tuple[Tensor, ...], labels: tuple[Tensor, ...]) -> None:
    """Run the model once by itself, so that its own faults are told from those of tracing."""
    given = tuple(t.clone() for t in inputs), tuple(t.clone() for t in labels)
    with Watch(step.model, settled=False):
        try:
            loss = step(*given)
        except CaptureError:
            raise
        except Exception as error:
            raise CaptureError(failed(error, _modules(step))) from error
    if isinstance(loss, Tensor):
        refuse_custom_functions(loss)


def _trace(
    step: TrainStep, inputs: tuple[Tensor, ...], labels: tuple[Tensor, ...], owned: Mapping[int, str]
) -> tuple[Program, dict[str, Tensor]]:
    tensors = named_tensors(step)
    try:
        with warnings.catch_warnings():
            # It warns of attributes that forward() assigns; the parity check judges them.
            warnings.simplefilter("ignore", UserWarning)
            exported = torch.export.export(step, (inputs, labels), strict=False)
    except Exception as error:
        raise CaptureError(explain(error, _modules(step))) from error
    names, tied = _shared_names(tensors)
    fields = [f"x{i}" for i in range(len(inputs))] + [f"y{i}" for i in range(len(labels))]
    transient = _transient(step, tensors)
    builder = Builder()
    weights: dict[str, Tensor] = {}
    leaves: dict[str, Value] = {}
    arguments: list[int] = []
    for spec in exported.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            name = fields.pop(0)
            tensor, kind = (inputs + labels)[len(inputs) + len(labels) - len(fields) - 1], "input"
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            name = names[canonical_name(str(spec.target))]
            tensor = tensors[name]
            kind = (
                "buffer" if spec.kind is InputKind.BUFFER else "param" if tensor.requires_grad else "frozen"
            )
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            name, kind, tensor = f"constant::{spec.target}", "buffer", exported.constants[str(spec.target)]
            read = owned.get(tensor.untyped_storage()._cdata)
            if read is not None:
                raise CaptureError(
                    f"the loss reads {read!r} of the model past its output; "
                    "return it from forward(), or let the model compute its loss itself (loss=None)"
                )
            transient.add(name)
        else:
            raise CaptureError(f"the model takes a {spec.kind.name}, which cannot travel; use tensors only")
        if name not in leaves:
            if tensor.dtype not in ops.DTYPES.values():
                raise CaptureError(f"tensor {name!r}: dtype {tensor.dtype} cannot travel")
            leaf = Leaf(name, tuple(tensor.shape), ops.dtype_name(tensor.dtype), kind)
            leaves[name] = builder.leaf(leaf)
            if kind != "input":
                weights[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
        arguments.append(leaves[name])
    output = Lowering(builder).run(exported.graph_module, arguments)
    program = _finish(builder, output, tied, frozenset(transient))
    kept = {leaf.name for leaf in program.params + program.buffers}
    return program, {name: tensor for name, tensor in weights.items() if name in kept}


def _finish(
    builder: Builder, output: Any, tied: tuple[tuple[str, ...], ...], transient: frozenset[str]
) -> Program:
    values = output if isinstance(output, list) else [output]
    if len(values) != 1 or not isinstance(values[0], Value):
        raise CaptureError("the loss is not one tensor; return the scalar loss alone")
    spec = builder.spec(values[0])
    if spec.shape != ():
        raise CaptureError(f"the loss has shape {spec.shape}; reduce it to a scalar, such as by .mean()")
    if not spec.differentiable:
        raise CaptureError(
            "the loss depends on no parameter; check for detach(), no_grad() or frozen weights"
        )
    return builder.finish(values[0], tied, transient)


def _shared_names(tensors: Mapping[str, Tensor]) -> tuple[dict[str, str], tuple[tuple[str, ...], ...]]:
    """First name of each tensor by any of its names, and the groups of names of one tensor."""
    groups: dict[Any, list[str]] = {}
    for name, tensor in tensors.items():
        key = (tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
        groups.setdefault(key if tensor.numel() else name, []).append(name)
    first = {name: group[0] for group in groups.values() for name in group}
    return first, tuple(tuple(group) for group in groups.values() if len(group) > 1)


def _transient(step: TrainStep, tensors: Mapping[str, Tensor]) -> set[str]:
    saved = {canonical_name(name) for name in step.model.state_dict(prefix="model.")}
    return {name for name in tensors if name not in saved}


def _uncopied(model: nn.Module, error: Exception) -> str:
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                where = place(path, type(module).__name__)
                return (
                    f"{where}: its attribute {name!r} is a computed tensor; compute it in forward() "
                    "(for weight_norm: torch.nn.utils.parametrizations.weight_norm)"
                )
    return f"the model cannot be copied ({brief(error)}); keep only tensors and plain values as attributes"


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
def _randomness_restored() -> Iterator[None]:
    python, arrays = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(arrays)
