"""Call one node on actual values; shared by the abstract run and the real one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ravnest_p2p.model import ops
from ravnest_p2p.model.node import Arg, Node, Ref

Slots = list[Any]


def bind(value: Arg, fetch: Callable[[int], Any]) -> Any:
    """The argument with every slot reference replaced by what `fetch` returns for it."""
    if isinstance(value, Ref):
        return fetch(value.slot)
    if isinstance(value, tuple):
        return [bind(item, fetch) for item in value]
    return value


def call(
    node: Node, fetch: Callable[[int], Any], device: torch.device | None = None
) -> tuple[torch.Tensor, ...]:
    """Run the node; returns the tensors that it defines, none for a mutating operation."""
    op = ops.resolve(node.op)
    args = [bind(value, fetch) for value in node.args]
    kwargs = {name: bind(value, fetch) for name, value in node.kwargs}
    if device is not None and node.op in ops.FACTORY_OPS:
        kwargs["device"] = device
    if node.no_grad:
        with torch.no_grad():
            result = op(*args, **kwargs)
    else:
        result = op(*args, **kwargs)
    return () if node.op in ops.MUTATING_OPS else flatten(result)


def flatten(result: Any) -> tuple[torch.Tensor, ...]:
    """Tensors of an operation's result, which is one tensor or a sequence of them."""
    if isinstance(result, torch.Tensor):
        return (result,)
    if isinstance(result, Sequence):
        return tuple(tensor for item in result for tensor in flatten(item))
    raise ValueError(f"an operation returned {type(result).__name__} where a tensor was expected")
