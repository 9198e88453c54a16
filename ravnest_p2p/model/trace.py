"""Trace a model and its loss as one graph, and lower it: what capturing training and evaluation share."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind

from ravnest_p2p.core.errors import CaptureError
from ravnest_p2p.model import ops
from ravnest_p2p.model.builder import Builder, Value
from ravnest_p2p.model.evaluation import Evaluation
from ravnest_p2p.model.explain import brief, explain, place
from ravnest_p2p.model.lower import Lowering
from ravnest_p2p.model.node import Leaf

Examples = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
"""Inputs and labels of one micro-batch."""


class TrainStep(nn.Module):
    """The user's model and loss as one module that maps inputs and labels to the loss."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor] | None) -> None:
        super().__init__()
        self.model = model
        self.loss: Any = loss

    def forward(self, inputs: tuple[Tensor, ...], labels: tuple[Tensor, ...]) -> Any:
        if self.loss is not None:
            return self.loss(self.model(*inputs), *labels)
        output = self.model(*inputs, *labels)
        return output if isinstance(output, Tensor) else output.loss


class EvalStep(TrainStep):
    """The same in eval mode; maps inputs and labels to the loss and all tensors that the model returns."""

    def __init__(self, step: TrainStep) -> None:
        super().__init__(step.model, step.loss)
        self.eval()

    def forward(self, inputs: tuple[Tensor, ...], labels: tuple[Tensor, ...]) -> list[Tensor]:
        loss, outputs = self.evaluated(inputs, labels)
        return [loss, *outputs.values()]

    def evaluated(self, inputs: tuple[Tensor, ...], labels: tuple[Tensor, ...]) -> Evaluation:
        """Loss and outputs, these under their names."""
        if self.loss is not None:
            output = self.model(*inputs)
            return Evaluation(self.loss(output, *labels), named_outputs(output))
        output = self.model(*inputs, *labels)
        if isinstance(output, Tensor):
            return Evaluation(output, {})
        outputs = named_outputs(output)
        outputs.pop("loss", None)
        return Evaluation(output.loss, outputs)


def named_outputs(output: Any) -> dict[str, Tensor]:
    """Tensors in what a model returned, by key, field or position; "output" where it is one tensor.

    Mappings, dataclasses, tuples and lists are looked into; whatever else is in them is passed over.
    """
    found: dict[str, Tensor] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, Tensor):
            name = path or "output"
            if name in found:
                raise CaptureError(f"the model: two of the tensors that it returns are called {name!r}")
            found[name] = value
            return
        items: Iterable[tuple[Any, Any]] = ()
        if isinstance(value, Mapping):
            items = value.items()
        elif is_dataclass(value):
            items = ((part.name, getattr(value, part.name)) for part in fields(value))
        elif isinstance(value, (tuple, list)):
            items = zip(getattr(value, "_fields", range(len(value))), value, strict=True)
        for key, item in items:
            walk(item, f"{path}.{key}" if path else str(key))

    walk(output, "")
    return found


@dataclass(frozen=True)
class Traced:
    """A lowered step.

    Attributes:
        results: values that it returns; of another type where it returns no tensor.
        tensors: those that it reads, by name: the model's own, not copied.
        tied: groups of names of one tensor; the first is the one in `tensors`.
        transient: names that are not in the model's state_dict.
    """

    builder: Builder
    results: list[Any]
    tensors: dict[str, Tensor]
    tied: tuple[tuple[str, ...], ...]
    transient: frozenset[str]


def trace(
    step: TrainStep,
    inputs: tuple[Tensor, ...],
    labels: tuple[Tensor, ...],
    owned: Mapping[int, str],
    constants: str,
) -> Traced:
    """Trace one run of the step and lower it.

    Args:
        owned: names of the user's own tensors by storage, which the copied step does not share.
        constants: what the names of tensors that the graph holds itself begin with.
    Raises:
        CaptureError: the model cannot travel; names the module, the cause and the fix.
    """
    tensors = named_tensors(step)
    try:
        with warnings.catch_warnings():
            # It warns of attributes that forward() assigns; the parity check judges them.
            warnings.simplefilter("ignore", UserWarning)
            exported = torch.export.export(step, (inputs, labels), strict=False)
    except Exception as error:
        raise CaptureError(explain(error, modules_of(step))) from error
    names, tied = _shared_names(tensors)
    given = [(f"x{i}", t) for i, t in enumerate(inputs)] + [(f"y{i}", t) for i, t in enumerate(labels)]
    transient = _transient(step, tensors)
    builder = Builder()
    read: dict[str, Tensor] = {}
    leaves: dict[str, Value] = {}
    arguments: list[int] = []
    for spec in exported.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            (name, tensor), kind = given.pop(0), "input"
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            name = names[canonical_name(str(spec.target))]
            tensor = tensors[name]
            kind = (
                "buffer" if spec.kind is InputKind.BUFFER else "param" if tensor.requires_grad else "frozen"
            )
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            name, kind = f"{constants}::{spec.target}", "buffer"
            tensor = exported.constants[str(spec.target)]
            held = owned.get(tensor.untyped_storage()._cdata)
            if held is not None:
                raise CaptureError(
                    f"the loss reads {held!r} of the model past its output; "
                    "return it from forward(), or let the model compute its loss itself (loss=None)"
                )
            transient.add(name)
        else:
            raise CaptureError(f"the model takes a {spec.kind.name}, which cannot travel; use tensors only")
        if name not in leaves:
            if tensor.dtype not in ops.DTYPES.values():
                raise CaptureError(f"tensor {name!r}: dtype {tensor.dtype} cannot travel")
            leaves[name] = builder.leaf(Leaf(name, tuple(tensor.shape), ops.dtype_name(tensor.dtype), kind))
            if kind != "input":
                read[name] = tensor
        arguments.append(leaves[name])
    output = Lowering(builder).run(exported.graph_module, arguments)
    results = output if isinstance(output, list) else [output]
    return Traced(builder, results, read, tied, frozenset(transient))


def copied_step(model: nn.Module, loss: Callable[..., Tensor] | None) -> TrainStep:
    """A copy of both on the CPU, in train mode.

    Raises:
        CaptureError: they cannot be copied.
    """
    try:
        copied, copied_loss = copy.deepcopy((model, loss))
    except Exception as error:
        raise CaptureError(_uncopied(model, error)) from error
    if not model.training:
        copied.train()
    return TrainStep(copied, copied_loss).cpu()


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


def modules_of(step: TrainStep) -> dict[str, nn.Module]:
    """All modules by their path in the user's model."""
    return {canonical_path(path): module for path, module in step.named_modules()}


def storages(step: TrainStep) -> dict[int, str]:
    """Names of the step's tensors by storage; a copy of the model does not share them."""
    return {tensor.untyped_storage()._cdata: name for name, tensor in named_tensors(step).items()}


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
