"""Collect nodes while capturing, then drop what is unused and number the slots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from ravnest_p2p.core.errors import CaptureError
from ravnest_p2p.model import ops
from ravnest_p2p.model.abstract import fake_leaf, fake_mode
from ravnest_p2p.model.execute import call
from ravnest_p2p.model.explain import brief, known_cause, unlisted
from ravnest_p2p.model.node import Arg, Leaf, Node, Ref, TensorSpec
from ravnest_p2p.model.schema import MAX_INT, check_node


class Parts(NamedTuple):
    """What a graph is made of; `results` are slots."""

    inputs: tuple[Leaf, ...]
    params: tuple[Leaf, ...]
    buffers: tuple[Leaf, ...]
    nodes: tuple[Node, ...]
    results: tuple[int, ...]


class Value(int):
    """Provisional number of a value, told apart from plain integers in arguments."""


class Builder:
    """Emits nodes over provisional value numbers; `pruned` gives the parts of a program.

    Attributes:
        where: the module being captured, for messages.
    """

    def __init__(self) -> None:
        self.where = "the model"
        self._mode = fake_mode()
        self._fakes: list[torch.Tensor] = []
        self._leaves: dict[int, Leaf] = {}
        self._nodes: list[tuple[Node, tuple[int, ...]]] = []

    def leaf(self, leaf: Leaf) -> Value:
        """Declare a leaf; it is kept in the program if it is used, or is a data input."""
        with self._mode:
            self._fakes.append(fake_leaf(leaf))
        value = Value(len(self._fakes) - 1)
        self._leaves[value] = leaf
        return value

    def leaf_of(self, value: Any) -> Leaf | None:
        """The leaf that the value is, if it is one."""
        return self._leaves.get(value) if isinstance(value, Value) else None

    def is_buffer(self, value: Any) -> bool:
        leaf = self.leaf_of(value)
        return leaf is not None and leaf.kind == "buffer"

    def traced(self, run: Callable[..., Any], values: Sequence[Value]) -> GraphModule:
        """Graph of what `run` does on these values below autograd."""
        with self._mode:
            fakes = [self._fakes[value].detach() for value in values]
            return make_fx(run)(*fakes)

    def spec(self, value: int) -> TensorSpec:
        fake = self._fakes[value]
        return TensorSpec(tuple(fake.shape), ops.dtype_name(fake.dtype), fake.requires_grad)

    def emit(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], no_grad: bool = False) -> Any:
        """Append a node; returns its value, a list of values, or None for a write to a buffer.

        Raises:
            CaptureError: the operation is not one that may travel, or it refuses its arguments.
        """
        try:
            op = ops.resolve(name)
        except KeyError:
            cause, fix = unlisted(name)
            raise CaptureError(f"{self.where}: {cause}; {fix}") from None
        clamp = name.startswith("aten.slice")
        packed = tuple(_pack(a, clamp) for a in args)
        node = Node(name, packed, tuple((k, _pack(v, clamp)) for k, v in sorted(kwargs.items())), (), no_grad)
        try:
            check_node(node)
            with self._mode:
                results = call(node, self._fakes.__getitem__)
        except Exception as error:
            cause, fix = known_cause(str(error)) or (
                f"{name} could not be captured ({brief(error)})",
                "write this part with other operations",
            )
            raise CaptureError(f"{self.where}: {cause}; {fix}") from error
        specs = tuple(TensorSpec(tuple(r.shape), ops.dtype_name(r.dtype)) for r in results)
        node = Node(node.op, node.args, node.kwargs, specs, no_grad)
        values = [Value(len(self._fakes) + i) for i in range(len(results))]
        self._fakes.extend(results)
        self._nodes.append((node, tuple(values)))
        if name in ops.MUTATING_OPS:
            return None
        single = len(op._schema.returns) == 1 and str(op._schema.returns[0].type) == "Tensor"
        return values[0] if single else values

    def pruned(self, results: Sequence[Value], owned: Callable[[Leaf], bool]) -> Parts:
        """What makes the results and changes buffers, without dead parts, its slots numbered.

        Args:
            owned: tells the leaves of `params` from those of `buffers`.
        """
        live = {int(result) for result in results}
        kept: list[tuple[Node, tuple[int, ...]]] = []
        for node, values in reversed(self._nodes):
            needed = node.mutated() or node.op in ops.RANDOM_OPS or any(v in live for v in values)
            if needed:
                kept.append((node, values))
                live.update(node.refs())
        kept.reverse()
        groups: tuple[dict[int, Leaf], ...] = ({}, {}, {})
        for value, leaf in self._leaves.items():
            if value in live or leaf.kind == "input":
                groups[0 if leaf.kind == "input" else 1 if owned(leaf) else 2][value] = leaf
        chosen = [value for group in groups for value in group]
        numbered = {value: slot for slot, value in enumerate(chosen)}
        nodes = []
        for node, values in kept:
            args = tuple(_renumber(a, numbered) for a in node.args)
            kwargs = tuple((k, _renumber(v, numbered)) for k, v in node.kwargs)
            for value in values:
                numbered[value] = len(numbered)
            nodes.append(Node(node.op, args, kwargs, node.outputs, node.no_grad))
        inputs, params, buffers = (tuple(group.values()) for group in groups)
        return Parts(inputs, params, buffers, tuple(nodes), tuple(numbered[r] for r in results))


def _pack(value: Any, clamp: bool) -> Arg:
    if isinstance(value, Value):
        return Ref(int(value))
    if isinstance(value, (list, tuple)):
        return tuple(_pack(item, clamp) for item in value)
    if clamp and isinstance(value, int) and not isinstance(value, bool):
        return max(-MAX_INT, min(MAX_INT, value))
    return value  # type: ignore[no-any-return]


def _renumber(value: Arg, numbered: Mapping[int, int]) -> Arg:
    if isinstance(value, Ref):
        return Ref(numbered[value.slot])
    if isinstance(value, tuple):
        return tuple(_renumber(item, numbered) for item in value)
    return value
