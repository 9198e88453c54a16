"""A float32 weight of which only the bfloat16 half is kept.

Problem: ŵ lives for as long as a micro-batch that crosses an update, and in float32 it is half as much again
as AdamW's whole state. A copy in bfloat16 is a quarter; but whoever widens it before the forward has the
float32 copy again, since autograd keeps what an operation has read until the backward.
Solution: a tensor that is float32 to the program and to autograd and bfloat16 in memory. Autograd keeps the
tensor itself; each operation that reads it, forward or backward, gets a float32 copy for as long as it runs.
Views of it are views of the half, and an embedding widens the rows that it looks up, not the table.

Source: PyTorch, "Extending PyTorch with wrapper tensor subclasses" (`_make_wrapper_subclass`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

_ROWS = frozenset({torch.ops.aten.embedding.default, torch.ops.aten.index_select.default})


class Halved(Tensor):
    """What `halved` gives; never written to."""

    _half: Tensor

    @staticmethod
    def __new__(cls, half: Tensor) -> Halved:
        return Tensor._make_wrapper_subclass(
            cls,
            half.size(),
            strides=half.stride(),
            storage_offset=half.storage_offset(),
            dtype=torch.float32,
            device=half.device,
        )

    def __init__(self, half: Tensor) -> None:
        self._half = half

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def whole(self) -> Tensor:
        """The values as an ordinary float32 tensor: a new one, without gradient."""
        return self._half.to(torch.float32)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Halved({self._half})"

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["_half"], None

    @staticmethod
    def __tensor_unflatten__(inner: Mapping[str, Tensor], *_: Any) -> Halved:
        return Halved(inner["_half"])

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], Halved):
            if func._schema.is_mutable:
                raise RuntimeError(f"{func} writes to a weight of which only a half is kept")
            if _is_view(func):
                return _each(func(args[0]._half, *args[1:], **kwargs), Tensor, Halved)
            if func in _ROWS:
                return func(args[0]._half, *args[1:], **kwargs).to(torch.float32)
        whole = _each((args, kwargs), Halved, Halved.whole)
        return func(*whole[0], **whole[1])


def halved(weight: Tensor) -> Tensor:
    """The weight rounded to bfloat16, in half the bytes; one that is not float32 as it is."""
    if weight.dtype != torch.float32:
        return weight
    return Halved(weight.detach().to(torch.bfloat16))


def _is_view(func: Any) -> bool:
    """Whether the result shares the first argument's memory and dtype."""
    aliases = [result.alias_info for result in func._schema.returns]
    return bool(aliases) and all(aliases) and func is not torch.ops.aten.view.dtype


def _each(tree: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    return tree_map(lambda value: change(value) if isinstance(value, kind) else value, tree)
