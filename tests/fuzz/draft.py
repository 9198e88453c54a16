"""Write a program node by node, with results declared as they would be: what a careful attacker sends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ravnest_p2p.model import Leaf, Node, Program, Ref, TensorSpec, ops
from ravnest_p2p.model.abstract import fake_leaf, fake_mode
from ravnest_p2p.model.execute import call
from ravnest_p2p.model.guards import guard
from ravnest_p2p.model.schema import check_node

FLOAT32 = torch.float32


class Draft:
    """A program in the making; values are numbered in the order of their making until `finish`."""

    def __init__(self) -> None:
        self.leaves: dict[int, Leaf] = {}
        self.fakes: list[torch.Tensor] = []
        self.nodes: list[tuple[Node, tuple[int, ...]]] = []
        self._mode = fake_mode()

    def leaf(self, shape: Sequence[int], dtype: str, kind: str) -> int:
        number = len(self.fakes)
        name = f"x{number}" if kind == "input" else f"t{number}"
        self.leaves[number] = Leaf(name, tuple(shape), dtype, kind)
        with self._mode:
            self.fakes.append(fake_leaf(self.leaves[number]))
        return number

    def add(
        self, op: str, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None, no_grad: bool = False
    ) -> list[int]:
        """Append a node; returns its values.

        Raises:
            Exception: whatever the operation says to its arguments.
        """
        node = Node(op, tuple(args), tuple(sorted((kwargs or {}).items())), (), no_grad)
        check_node(node)
        guard(node, self.fakes.__getitem__)
        with self._mode:
            results = call(node, self.fakes.__getitem__)
        specs = tuple(TensorSpec(tuple(r.shape), ops.dtype_name(r.dtype)) for r in results)
        values = list(range(len(self.fakes), len(self.fakes) + len(results)))
        self.fakes.extend(results)
        self.nodes.append((Node(op, node.args, node.kwargs, specs, no_grad), tuple(values)))
        return values

    def finish(self, results: Sequence[int]) -> Program:
        """The program whose loss is the sum of these values and of a parameter."""
        (loss,) = self.add("aten.sum.default", [Ref(self.leaf((2,), "float32", "param"))])
        for value in results:
            (part,) = self.add("aten.to.dtype", [Ref(value), FLOAT32])
            (part,) = self.add("aten.sum.default", [Ref(part)])
            (loss,) = self.add("aten.add.Tensor", [Ref(loss), Ref(part)])
        kinds = (("input",), ("param",), ("buffer", "frozen"))
        groups = [[n for n, leaf in self.leaves.items() if leaf.kind in kind] for kind in kinds]
        numbered = {number: slot for slot, number in enumerate(n for group in groups for n in group)}
        nodes = []
        for node, values in self.nodes:
            args: Any = _renumber(node.args, numbered)
            named = tuple((name, _renumber(value, numbered)) for name, value in node.kwargs)
            for value in values:
                numbered[value] = len(numbered)
            nodes.append(Node(node.op, args, named, node.outputs, node.no_grad))
        inputs, params, buffers = (tuple(self.leaves[n] for n in group) for group in groups)
        return Program(inputs, params, buffers, tuple(nodes), numbered[loss], (len(nodes),))


def _renumber(value: Any, numbered: Mapping[int, int]) -> Any:
    if isinstance(value, Ref):
        return Ref(numbered[value.slot])
    if isinstance(value, tuple):
        return tuple(_renumber(item, numbered) for item in value)
    return value
