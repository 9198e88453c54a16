"""Run a program on fake tensors: shapes, gradients and bytes without allocating any of it.

Problem: a program's declared shapes can lie, and can ask for more memory than the machine has. Solution:
before anything real exists, each node runs on torch's fake tensors (shape and dtype without data). Every
result is compared with its declaration and added to a byte budget, the run stops at the first breach. The
same run tells the planner which values carry gradients, and what autograd would keep for the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ravnest_p2p.core.errors import ConfigError
from ravnest_p2p.core.optimizers import PRECISIONS
from ravnest_p2p.core.types import MICROBATCH_FLOPS
from ravnest_p2p.model import ops
from ravnest_p2p.model.effort import inner_bytes, node_effort
from ravnest_p2p.model.execute import call
from ravnest_p2p.model.guards import guard
from ravnest_p2p.model.node import Leaf, Node, TensorSpec
from ravnest_p2p.model.remade import is_remade

if TYPE_CHECKING:
    from ravnest_p2p.model.program import Graph

DEFAULT_TENSOR_BYTES = 1 << 36
DEFAULT_TOTAL_BYTES = 1 << 42


@dataclass(frozen=True)
class Analysis:
    """What the abstract run found.

    Attributes:
        specs: of every slot, with `differentiable` as autograd sees it.
        contiguous: of every slot.
        saved_bytes: for every node, what it keeps for the backward pass and no node before it kept already.
        remade_bytes: of these, what `model.remade` makes again.
        total_bytes: of all leaves and results together.
        precision: that it was made in.
    """

    specs: tuple[TensorSpec, ...]
    contiguous: tuple[bool, ...]
    saved_bytes: tuple[int, ...]
    remade_bytes: tuple[int, ...]
    total_bytes: int
    precision: str = "fp32"


class Budget:
    """Counts bytes and operations, and refuses more than allowed.

    Raises (from `add` and `work`):
        ValueError: one tensor, all together, or the work on them are over the limit.
    """

    def __init__(
        self,
        tensor_bytes: int = DEFAULT_TENSOR_BYTES,
        total_bytes: int = DEFAULT_TOTAL_BYTES,
        flops: float = MICROBATCH_FLOPS,
    ) -> None:
        self._tensor_bytes = tensor_bytes
        self._total_bytes = total_bytes
        self._flops = flops
        self.used = 0
        self.worked = 0.0

    def add(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        size = math.prod(shape) * dtype.itemsize
        if size > self._tensor_bytes:
            raise ValueError(f"a tensor of {size} bytes is over the limit of {self._tensor_bytes}")
        self.used += size
        if self.used > self._total_bytes:
            raise ValueError(f"all tensors together are over the limit of {self._total_bytes} bytes")

    def work(self, node: Node, specs: Sequence[TensorSpec]) -> None:
        """Add what the node computes; `specs` are those of all slots up to its results."""
        inside = inner_bytes(node, specs)
        if inside > self._tensor_bytes:
            raise ValueError(f"a tensor inside has {inside} bytes, over the limit of {self._tensor_bytes}")
        self.worked += node_effort(node, specs)
        if self.worked > self._flops:
            raise ValueError(
                f"one micro-batch takes more than {self._flops:.3g} operations, the limit of this peer"
            )


def fake_mode() -> FakeTensorMode:
    """Fake tensors that never fall back to running a real kernel."""
    return FakeTensorMode(allow_fallback_kernels=False)


def fake_leaf(leaf: Leaf, *, trains: bool = True) -> torch.Tensor:
    """Stand-in for a leaf, a parameter with gradient if it `trains`; call it inside `fake_mode()`."""
    gradient = trains and leaf.kind == "param"
    return torch.empty(leaf.shape, dtype=ops.DTYPES[leaf.dtype], requires_grad=gradient)


def computing_in(precision: str) -> torch.autocast:
    """The context in which a stage computes: "fp32" as declared, "bf16" as torch.autocast has it.

    Raises:
        ConfigError: another word.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision {precision!r} is unknown; it is one of {', '.join(PRECISIONS)}")
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16")


def analyse(program: Graph, budget: Budget | None = None, precision: str = "fp32") -> Analysis:
    """Run the whole program on fake tensors.

    Args:
        precision: of the computation; results are compared with their declaration in "fp32" only.
    Raises:
        ValueError: a result differs from its declaration, an operation refuses its arguments, or the byte
            budget is over; the message names the node.
    """
    budget = budget or Budget()
    for leaf in program.leaves:
        budget.add(leaf.shape, ops.DTYPES[leaf.dtype])
    with fake_mode(), computing_in(precision):
        values = [fake_leaf(leaf, trains=program.trains) for leaf in program.leaves]
        meter = _SavedMeter(values)
        specs = [_spec(value) for value in values]
        saved: list[tuple[int, int]] = []
        for index, node in enumerate(program.nodes):
            try:
                for spec in node.outputs:
                    budget.add(spec.shape, spec.torch_dtype)
                guard(node, values.__getitem__)
                with meter:
                    results = call(node, values.__getitem__)
                if precision == "fp32":
                    _compare(node, results)
                specs.extend(_spec(result) for result in results)
                budget.work(node, specs)
            except Exception as error:
                raise ValueError(f"node {index} ({node.op}): {_brief(error)}") from error
            saved.append(meter.take())
            if (
                precision == "fp32"
                and results
                and is_remade(node.op, [values[slot] for slot in dict.fromkeys(node.refs())], results[0])
            ):
                meter.remake(results[0])
            values.extend(results)
        # Again, since a write can make a buffer carry gradients.
        final = tuple(_spec(value) for value in values)
        contiguous = tuple(value.is_contiguous() for value in values)
        kept, remade = tuple(k for k, _ in saved), tuple(r for _, r in saved)
        return Analysis(final, contiguous, kept, remade, budget.used, precision)


def _spec(value: torch.Tensor) -> TensorSpec:
    return TensorSpec(tuple(value.shape), ops.dtype_name(value.dtype), value.requires_grad)


def _compare(node: Node, results: tuple[torch.Tensor, ...]) -> None:
    found = [(tuple(r.shape), ops.dtype_name(r.dtype)) for r in results]
    declared = [(spec.shape, spec.dtype) for spec in node.outputs]
    if found != declared:
        raise ValueError(f"declared results {declared} differ from the actual {found}")


def _brief(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


class _SavedMeter:
    """Adds up the bytes that autograd saves, each storage once; parameters and buffers are not counted."""

    def __init__(self, leaves: list[torch.Tensor]) -> None:
        self._leaves = leaves
        self._seen = {leaf.untyped_storage()._cdata for leaf in leaves}
        self._alive: list[torch.Tensor] = []
        self._bytes = self._remade_bytes = 0
        self._remade: set[int] = set()
        self._hooks: Any = None

    def __enter__(self) -> None:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self._hooks.__enter__()

    def __exit__(self, *exc: object) -> None:
        self._hooks.__exit__(*exc)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._alive.append(tensor)
            self._bytes += storage.nbytes()
            self._remade_bytes += storage.nbytes() * (storage._cdata in self._remade)
        return tensor

    def remake(self, result: torch.Tensor) -> None:
        self._remade.add(result.untyped_storage()._cdata)

    def take(self) -> tuple[int, int]:
        """Bytes saved since the last call, and of these, those that can be made again."""
        taken = self._bytes, self._remade_bytes
        self._bytes = self._remade_bytes = 0
        return taken
