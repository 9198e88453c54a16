"""What each node costs, so that a planner can cut fairly.

Problem: the planner wants work in one number although convolutions are bound by arithmetic and activations by
memory. Solution: exact operation counts for the few operations that multiply matrices, and for all others the
bytes that they move, priced as the arithmetic a typical CPU core could do meanwhile. A few kinds that were
measured to be far from that have a factor. A prediction, good to about a factor of two for one layer and to a
tenth for a balanced stage; `profile` measures instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ravnest_p2p.model.node import Node, TensorSpec

FLOPS_PER_BYTE = 4.0
"""Price of moving a byte; 10 GB/s and 40 GFLOP/s are what one core of an ordinary PC sustains."""

_SLOWER = {"scaled_dot_product_attention": 2.0, "batch_norm": 2.0}
"""Time over what is counted, forward and backward, on one core."""

_DEPTHWISE = 6.0
"""The same for a convolution with a group for every channel."""

_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d"}
_VIEWS = {
    "alias",
    "detach",
    "expand",
    "permute",
    "select",
    "slice",
    "split",
    "t",
    "transpose",
    "unbind",
    "view",
}


def node_flops(node: Node, specs: Sequence[TensorSpec]) -> float:
    """Operations of the node's forward pass, without those of its backward pass.

    Args:
        specs: of all slots of the program.
    """
    operands = [specs[slot] for slot in node.refs()]
    kind = node.op.split(".")[1]
    if kind in _VIEWS:
        return 0.0
    if kind in _CONVOLUTIONS:
        shapes = node.outputs[0].shape if "transpose" not in kind else operands[0].shape
        slower = _DEPTHWISE if operands[1].shape[1] == 1 < operands[0].shape[1] else 1.0
        return slower * 2.0 * math.prod(shapes) * math.prod(operands[1].shape[1:])
    if kind in {"linear", "matmul", "mm", "bmm", "mv", "dot"}:
        return 2.0 * math.prod(node.outputs[0].shape) * operands[0].shape[-1]
    if kind in {"addmm", "baddbmm"}:
        return 2.0 * math.prod(node.outputs[0].shape) * operands[1].shape[-1]
    if kind == "scaled_dot_product_attention":
        queries, keys = operands[0].shape, operands[1].shape
        return _SLOWER[kind] * 4.0 * math.prod(queries) * keys[-2]
    if kind.endswith(("_layer", "_cell")):
        weights = sum(
            math.prod(spec.shape) for spec in operands if len(spec.shape) == 2 and spec.differentiable
        )
        return 2.0 * math.prod(operands[0].shape[:-1]) * weights
    if kind == "embedding":
        return 2 * FLOPS_PER_BYTE * node.outputs[0].nbytes
    moved = sum(spec.nbytes for spec in operands[:2]) + sum(spec.nbytes for spec in node.outputs)
    return _SLOWER.get(kind, 1.0) * FLOPS_PER_BYTE * moved


def train_flops(node: Node, specs: Sequence[TensorSpec]) -> float:
    """Operations of forward and backward: each differentiable matrix operand costs one more forward."""
    forward = node_flops(node, specs)
    gradients = sum(specs[slot].differentiable for slot in node.refs()[:2])
    return forward * (1 + (0 if node.no_grad else gradients))
