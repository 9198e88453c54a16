"""Values that the backward pass makes again, since that costs less than to hold them.

Problem: a stage holds what autograd saved of every micro-batch in flight. In a transformer a third of it are
results of norms and activation functions, saved by the product that reads them, although all that they were
made of is saved as well. Solution: where a step reads such a result, autograd is handed a recipe to keep, the
operation and its arguments, in place of the result; its backward carries the operation out once more. The
same operation on the same tensors gives the same bits. In bf16, where autocast saves casts of such results,
nothing is won and nothing done. Values are chosen by the operation, their size, and
whether autograd holds the arguments anyhow, so a recipe never holds more than the result would have.

Recomputing whole stretches (`model.recompute`) saves more and costs a third of the work; this costs a few
percent, and is done where memory is not ample (`core.planning.cost.remakes`).

Source: arXiv 2205.05198, Reducing Activation Recomputation in Large Transformer Models (selective); PyTorch,
"Hooks for saved tensors".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

LEAST_BYTES = 128 * 1024
"""What a value has at least; a smaller one costs more to make again than it is worth."""

_OF_SAVED = """
elu.default gelu.default group_norm.default hardswish.default layer_norm.default leaky_relu.default
mish.default rms_norm.default silu.default softplus.default
"""
REMADE_OPS = frozenset(f"aten.{name}" for name in _OF_SAVED.split())
"""Elementwise operations and norms whose backward needs the arguments, not the result."""

PRODUCT = "aten.mul.Tensor"
"""Also one of these, where it saves both factors for the gradient of the other."""


def is_remade(op: str, arguments: Sequence[Tensor], result: Tensor) -> bool:
    """Whether autograd is to keep the recipe of this result instead of it.

    Args:
        op: name of the operation.
        arguments: its different tensors.
    """
    if not (op in REMADE_OPS or op == PRODUCT) or not result.requires_grad:
        return False
    if op == PRODUCT and (len(arguments) < 2 or not all(a.requires_grad for a in arguments)):
        return False
    return result.numel() * result.element_size() >= LEAST_BYTES


class Recipes:
    """Runs the steps of one forward, and sees to what autograd keeps of it. Used once.

    Args:
        makers: steps whose results may be made again, and their operations.
    """

    def __init__(self, makers: Mapping[Any, str]) -> None:
        self._makers = makers
        self._known: dict[int, _Recipe] = {}

    def run(self, step: Any, slots: Any, generator: torch.Generator | None, seed: int) -> None:
        """Run the step; what it saves of results with a recipe is the recipe."""
        known, op = self._known, self._makers.get(step)
        read = {slot: known[slot] for slot in step.reads if slot in known} if known else {}
        if op is None and not read:
            step.run(slots, generator, seed)
            return
        arguments = [slots[slot] for slot in step.reads]
        storages = {slots[slot].untyped_storage()._cdata: recipe for slot, recipe in read.items()}
        if read:
            with saved_tensors_hooks(_packing(storages), _unpacked):
                step.run(slots, generator, seed)
        else:
            step.run(slots, generator, seed)
        for slot in step.out:
            known.pop(slot, None)
            result = slots[slot]
            if not isinstance(result, Tensor):
                continue
            shared = storages.get(result.untyped_storage()._cdata)
            if shared is not None:
                known[slot] = shared
            elif op is not None and is_remade(op, arguments, result):
                kept = [read.get(s, a) for s, a in zip(step.reads, arguments, strict=True)]
                known[slot] = _Recipe(step, kept)


class _Recipe:
    """One step and what it read: tensors, or recipes of these."""

    __slots__ = ("_arguments", "_step", "_versions")

    def __init__(self, step: Any, arguments: Sequence[Any]) -> None:
        self._step = step
        self._arguments = [a.detach() if isinstance(a, Tensor) else a for a in arguments]
        self._versions = [_version(a) for a in self._arguments]

    def value(self) -> Tensor:
        if self._versions != [_version(a) for a in self._arguments]:
            raise RuntimeError("a tensor that the backward pass needs has been changed in place")
        arguments = [a.value() if isinstance(a, _Recipe) else a for a in self._arguments]
        slots = dict(zip(self._step.reads, arguments, strict=True))
        with torch.no_grad():
            self._step.run(slots, None, 0)
        found: Tensor = slots[self._step.out[0]]
        return found


def _version(argument: Any) -> int:
    return argument._version if isinstance(argument, Tensor) else 0


def _packing(storages: dict[int, _Recipe]) -> Callable[[Tensor], Any]:
    def pack(tensor: Tensor) -> Any:
        recipe = storages.get(tensor.untyped_storage()._cdata)
        if recipe is None:
            return tensor, tensor._version
        return recipe, tensor.size(), tensor.stride(), tensor.storage_offset()

    return pack


def _unpacked(kept: Any) -> Tensor:
    if len(kept) == 2:
        tensor: Tensor = kept[0]
        if tensor._version != kept[1]:
            raise RuntimeError("a tensor that the backward pass needs has been changed in place")
        return tensor
    recipe, *place = kept
    made: Tensor = recipe.value().as_strided(*place)
    return made
