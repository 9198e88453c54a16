"""Say an operation in the words of the allow-list.

Problem: PyTorch has many spellings of one thing (`to` with a device, `normalize(…, out=…)`), and a few
operations that may not travel as they stand (a stack of LSTM layers). Solution: a table of rewritings that
compute the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ravnest_p2p.core.errors import CaptureError
from ravnest_p2p.model import ops
from ravnest_p2p.model.builder import Builder

KINDS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
RENAMED = {
    "aten._log_softmax.default": "aten.log_softmax.int",
    "aten._softmax.default": "aten.softmax.int",
    "aten._unsafe_view.default": "aten.view.default",
    "aten._weight_norm.default": "ravnest.weight_norm.default",
    "aten.detach_.default": "aten.detach.default",
    "aten.empty.memory_format": "aten.zeros.default",
    "aten.empty_like.default": "aten.zeros_like.default",
    "aten.inner.default": "aten.dot.default",
    "aten.lift_fresh_copy.default": "aten.clone.default",
    "aten.new_empty.default": "aten.new_zeros.default",
    "aten.slice_copy.Tensor": "aten.slice.Tensor",
    "aten.unsafe_chunk.default": "aten.chunk.default",
    "aten.unsafe_split.Tensor": "aten.split.Tensor",
    "aten.vdot.default": "aten.dot.default",
    **{f"aten.{kind}_cell.default": f"ravnest.{kind}_cell.default" for kind in KINDS},
}
"""Operations that do the same under another name."""

Rewriting = Callable[[Builder, Mapping[str, Any], bool], Any]


def rewriting(name: str) -> Rewriting | None:
    """What emits the operation instead, or None where it stands for itself."""
    return _REWRITTEN.get(name.rsplit(".", 1)[0])


def bound_arguments(
    op: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """All arguments by name, defaults filled in."""
    given = dict(zip((a.name for a in op._schema.arguments), args, strict=False)) | dict(kwargs)
    return {a.name: given.get(a.name, a.default_value) for a in op._schema.arguments}


def functional_of(op: torch._ops.OpOverload) -> str | None:
    """Name of the overload without the `out` argument."""
    wanted = [a for a in op._schema.arguments if not a.is_out]
    packet = op.overloadpacket
    for overload in packet.overloads():
        found = getattr(packet, overload)._schema.arguments
        if [(a.name, str(a.type)) for a in found] == [(a.name, str(a.type)) for a in wanted]:
            return f"aten.{packet.__name__}.{overload}"
    return None


def _to(builder: Builder, named: Mapping[str, Any], no_grad: bool) -> Any:
    source, other = named["self"], named.get("other")
    held = ops.DTYPES[builder.spec(source).dtype]
    dtype = named.get("dtype") or (held if other is None else ops.DTYPES[builder.spec(other).dtype])
    layout = named.get("memory_format")
    formats = {} if layout in (None, torch.preserve_format) else {"memory_format": layout}
    if named.get("copy", True):
        return builder.emit("aten.to.dtype", [source, dtype, False, True], formats, no_grad)
    if dtype == held and not formats:
        return source
    return builder.emit("aten.to.dtype", [source, dtype], formats, no_grad)


def _recurrent(kind: str) -> Rewriting:
    def rewrite(builder: Builder, named: Mapping[str, Any], no_grad: bool) -> Any:
        if "batch_sizes" in named:
            raise CaptureError(
                f"{builder.where}: packed sequences have lengths that depend on tensor values; "
                "pass padded sequences and mask the loss"
            )
        x, weights, layers = named["input"], named["params"], named["num_layers"]
        train, bidirectional, dropout = named["train"], named["bidirectional"], named["dropout"]
        states = named["hx"] if isinstance(named["hx"], list) else [named["hx"]]
        directions = 2 if bidirectional else 1
        each = directions * (4 if named["has_biases"] else 2)
        if len(weights) != each * layers:
            raise CaptureError(f"{builder.where}: projections (proj_size) cannot travel; use proj_size=0")

        def emit(name: str, *values: Any) -> Any:
            return builder.emit(name, values, {}, no_grad)

        if named["batch_first"]:
            x = emit("aten.transpose.int", x, 0, 1)
        last: list[list[Any]] = [[] for _ in states]
        for layer in range(layers):
            span = layer * directions, (layer + 1) * directions
            begin = [emit("aten.slice.Tensor", state, 0, *span) for state in states] if layers > 1 else states
            part = weights[layer * each : (layer + 1) * each]
            x, *ends = emit(f"ravnest.{kind}_layer.default", x, *begin, part, bidirectional, train)
            for held, end in zip(last, ends, strict=True):
                held.append(end)
            if dropout and train and layer + 1 < layers:
                x = emit("aten.dropout.default", x, dropout, True)
        if named["batch_first"]:
            x = emit("aten.transpose.int", x, 0, 1)
        return [x, *(held[0] if layers == 1 else emit("aten.cat.default", held, 0) for held in last)]

    return rewrite


def _normal(builder: Builder, named: Mapping[str, Any], no_grad: bool) -> Any:
    value = builder.emit("aten.randn_like.default", [named["self"]], {}, no_grad)
    if named["std"] != 1:
        value = builder.emit("aten.mul.Tensor", [value, named["std"]], {}, no_grad)
    if named["mean"] != 0:
        value = builder.emit("aten.add.Tensor", [value, named["mean"]], {}, no_grad)
    return value


_REWRITTEN: dict[str, Rewriting] = {
    "aten.to": _to,
    "aten._to_copy": _to,
    "aten.normal_functional": _normal,
    **{f"aten.{kind}": _recurrent(kind) for kind in KINDS},
}
