"""Notice what a model does beside its tensors.

Problem: two steps of equal numbers do not prove that the third is equal: a counter may act at step 100, a
gradient hook may clip only large gradients, a custom autograd function may saturate. Solution: whatever could
act so is refused where it is seen, whether or not it made a difference: gradient hooks, custom functions,
attributes that change from step to step, and numbers drawn from Python's or numpy's generators.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.overrides import TorchFunctionMode

from ravnest_p2p.core.errors import CaptureError
from ravnest_p2p.model.explain import place

_PLAIN = (bool, int, float, str, type(None))
_HOOK_FIX = "clip or change gradients by the job's optimizer options, or in forward()"


def refuse_unfit(model: nn.Module) -> None:
    """Refuse gradient hooks of modules and parameters, which a copy would not even have, and unmade weights.

    Raises:
        CaptureError: names the module.
    """
    for path, module in model.named_modules():
        if module._backward_hooks or module._backward_pre_hooks:
            raise CaptureError(
                f"{place(path, type(module).__name__)}: a backward hook cannot travel; {_HOOK_FIX}"
            )
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise CaptureError(
                f"{place(name.rpartition('.')[0])}: a lazy module has no weights yet; run the model once on "
                "an example before it is submitted"
            )
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            path = name.rpartition(".")[0]
            raise CaptureError(f"{place(path)}: the hook on parameter {name!r} cannot travel; {_HOOK_FIX}")


class Watch(TorchFunctionMode):
    """Around one eager step of a model: refuses what its numbers alone do not show.

    Attributes:
        reassigned: tensors that the step replaced by others, by path.

    Args:
        settled: whether attributes may no longer change; the first step may fill caches.
    """

    def __init__(self, model: nn.Module, settled: bool) -> None:
        super().__init__()
        self._model = model
        self._settled = settled
        self._before: dict[tuple[str, str], Any] = {}
        self._kept: dict[str, Tensor] = {}
        self.reassigned: list[str] = []
        self._generators: list[Any] = []

    def __enter__(self) -> Watch:
        self._before = _attributes(self._model)
        self._kept = _tensors(self._model)
        self._generators = _generators()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        if error is not None:
            return
        if repr(self._generators) != repr(_generators()):
            raise CaptureError(
                "the model: forward() draws numbers from Python's random or from numpy, which tracing takes "
                "for constants; draw from torch, such as by torch.rand"
            )
        after = _attributes(self._model)
        for key in sorted(self._before.keys() | after.keys()):
            path, name = key
            if self._before.get(key) != after.get(key) and (self._settled or name == "training"):
                raise CaptureError(
                    f"{place(path)}: its attribute {name!r} changes in forward(), and tracing takes it for a "
                    "constant; register a tensor by register_buffer() and write to it in place"
                )
        tensors = _tensors(self._model)
        self.reassigned = [key for key, kept in tensors.items() if self._kept.get(key, kept) is not kept]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.register_hook, Tensor.register_post_accumulate_grad_hook):
            raise CaptureError(
                f"the model: forward() puts a gradient hook on a tensor, which cannot travel; {_HOOK_FIX}"
            )
        return func(*args, **(kwargs or {}))


def refuse_custom_functions(loss: Tensor) -> None:
    """Refuse custom autograd functions: tracing records their forward and not their backward pass.

    Raises:
        CaptureError: names the function.
    """
    for function in graph_of(loss):
        if isinstance(function, torch.autograd.function.BackwardCFunction):
            name = type(function).__name__.removesuffix("Backward")
            if name == "CheckpointFunction":
                raise CaptureError(
                    "the model: reentrant gradient checkpointing hides its gradients from tracing; call "
                    "checkpoint(…, use_reentrant=False), or leave it out: stages may recompute by themselves"
                )
            raise CaptureError(
                f"the model: the backward pass of the custom autograd.Function {name} cannot travel; write "
                "it with plain operations (straight-through: x + (f(x) - x).detach())"
            )


def graph_of(loss: Tensor) -> list[Any]:
    """All functions of the backward pass."""
    found: dict[Any, None] = {}
    ahead = [loss.grad_fn]
    while ahead:
        function = ahead.pop()
        if function is not None and function not in found:
            found[function] = None
            ahead.extend(following for following, _ in function.next_functions)
    return list(found)


def _generators() -> list[Any]:
    return [random.getstate(), numpy.random.get_state()]


def _attributes(model: nn.Module) -> dict[tuple[str, str], Any]:
    """(module path, attribute) and value of all plain attributes; a container by its plain contents."""
    return {
        (path, name): _plain(value)
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if name == "training" or not name.startswith(("_parameters", "_buffers", "_modules", "_forward"))
    }


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Tensor attributes and buffers by path."""
    return {
        f"{path}.{name}".lstrip("."): value
        for path, module in model.named_modules()
        for name, value in (*vars(module).items(), *module._buffers.items())
        if isinstance(value, Tensor)
    }


def _plain(value: Any, depth: int = 0) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if depth > 3:
        return None
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    return type(value).__name__
