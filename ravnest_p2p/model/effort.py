"""The most that a node can cost, so that a small program cannot keep a peer busy for days.

Problem: `cost` predicts honest nodes, and prices by the bytes that go in and out. A hostile node does work
that no such byte shows: a pool whose window covers the image for each of its results, a loss over (n, 1) and
(1, n) that makes n² numbers and returns one. Solution: the larger of the prediction and what the operation's
loops do, from its arguments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ravnest_p2p.model import ops
from ravnest_p2p.model.cost import FLOPS_PER_BYTE, train_flops
from ravnest_p2p.model.guards import arguments
from ravnest_p2p.model.node import Arg, Node, TensorSpec

_BROADCAST = frozenset(name.split(".")[1] for name in ops.LOSS_OPS) | {"cosine_similarity"}

_POOLS = {"avg_pool1d", "avg_pool2d", "max_pool1d", "max_pool2d"}


def node_effort(node: Node, specs: Sequence[TensorSpec]) -> float:
    """Operations of forward and backward together, at most, but for a small factor.

    Args:
        specs: of all slots up to the node's results.
    """
    moved = max(visited_bytes(node, specs), inner_bytes(node, specs))
    return max(train_flops(node, specs), FLOPS_PER_BYTE * moved)


def inner_bytes(node: Node, specs: Sequence[TensorSpec]) -> int:
    """Size of the tensor that a loss makes inside itself before it is reduced; 0 for other operations."""
    if node.op.split(".")[1] not in _BROADCAST:
        return 0
    operands = [specs[slot] for slot in node.refs()]
    rank = max((len(spec.shape) for spec in operands), default=0)
    padded = [(1,) * (rank - len(spec.shape)) + spec.shape for spec in operands]
    widest = max((spec.torch_dtype.itemsize for spec in operands), default=0)
    elements: int = math.prod(max(sizes) for sizes in zip(*padded, strict=True))
    return elements * widest


def visited_bytes(node: Node, specs: Sequence[TensorSpec]) -> float:
    """Bytes that a pool's or an attention's loops read; 0 where they show in operands and results."""
    kind = node.op.split(".")[1]
    if kind in _POOLS:
        return node.outputs[0].nbytes * _window(arguments(node).get("kernel_size"), rank=int(kind[-2]))
    if kind == "scaled_dot_product_attention":
        query, key = (specs[slot].shape for slot in node.refs()[:2])
        return 2.0 * node.outputs[0].nbytes * key[-2] * (1 + query[-1] / max(1, node.outputs[0].shape[-1]))
    return 0.0


def _window(kernel: Arg | None, rank: int) -> float:
    sizes = [float(n) for n in kernel if isinstance(n, int)] if isinstance(kernel, tuple) else []
    return math.prod(sizes * rank if len(sizes) == 1 else sizes)
