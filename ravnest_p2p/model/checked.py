"""Operations that trust their arguments, behind checks of our own.

Problem: `aten.lstm` and its relatives, and `_weight_norm`, read and write past their tensors when the sizes
of weights do not fit together, yet nothing else runs a recurrent layer as fast, or with the same bits.
Solution: one operation of our own for each, which compares every shape and dtype first. A recurrent operation
is one layer, so that a stack of them can be cut between its layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

MAX_STEPS = 1 << 16
_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


class CheckedOp:
    """A function with an ATen-like schema, called in the way of `torch._ops.OpOverload`."""

    def __init__(self, schema: str, function: Callable[..., Any]) -> None:
        self._schema = torch._C.parse_schema(schema)
        self._op = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._op(*args, **kwargs)


def _need(condition: bool, message: str, kind: str) -> None:
    if not condition:
        raise ValueError(f"{kind}: {message}")


def _fit(
    kind: str, tensors: Sequence[Tensor], expected: Sequence[tuple[int, ...]], dtype: torch.dtype
) -> None:
    """Compare all shapes and dtypes; the message is made only where one is wrong."""
    for tensor, shape in zip(tensors, expected, strict=True):
        if tensor.shape != shape or tensor.dtype != dtype or not dtype.is_floating_point:
            raise ValueError(f"{kind}: a tensor of shape {tuple(tensor.shape)} {tensor.dtype} is not {shape}")


def _recurrent(
    kind: str,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    bidirectional: bool,
    train: bool,
) -> tuple[Tensor, ...]:
    """One recurrent layer.

    Args:
        x: (steps, batch, features).
        states: hidden, and cell for an LSTM, each (directions, batch, width).
        weights: for each direction input weight (gates·width, features) and hidden weight (gates·width,
            width), then both biases (gates·width,) or none at all.
    Returns:
        (steps, batch, directions·width), then the last states.
    Raises:
        ValueError: shapes or dtypes do not fit together.
    """
    directions = 2 if bidirectional else 1
    hidden = states[0]
    _need(x.dim() == 3 and x.shape[0] <= MAX_STEPS, "input is not (steps, batch, features)", kind)
    _need(hidden.dim() == 3, "the hidden state is not (directions, batch, width)", kind)
    _, batch, features = x.shape
    width = hidden.shape[2]
    rows = _GATES[kind] * width
    shapes = [(rows, features), (rows, width), (rows,), (rows,)]
    biased = len(weights) == 4 * directions
    tensors = [*states, *weights]
    expected: list[tuple[int, ...]] = [(directions, batch, width)] * len(states)
    expected += (shapes if biased else shapes[:2]) * directions
    _need(len(tensors) == len(expected) and x.numel() * width > 0, "weights are missing or empty", kind)
    _fit(kind, tensors, expected, x.dtype)
    if isinstance(x, FakeTensor):
        return _abstract(kind, x, states, weights, directions)
    op = getattr(torch.ops.aten, kind).input
    start = list(states) if kind == "lstm" else hidden
    result: tuple[Tensor, ...] = op(x, start, list(weights), biased, 1, 0.0, train, bidirectional, False)
    return result


def _abstract(
    kind: str, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor], directions: int
) -> tuple[Tensor, ...]:
    """Shapes, gradients and about the saved bytes of the layer, without a node for each step."""
    each = len(weights) // directions
    outputs = []
    for direction in range(directions):
        w_ih, w_hh, *biases = weights[direction * each : (direction + 1) * each]
        b_ih, b_hh = biases or (None, None)
        gates = torch.nn.functional.linear(x, w_ih, b_ih)
        gates = gates + torch.nn.functional.linear(states[0][direction], w_hh, b_hh)
        for state in states[1:]:
            gates = gates + state[direction].repeat(1, _GATES[kind])
        product = gates.sigmoid()
        outputs.append(torch.stack(product.chunk(_GATES[kind], -1)).prod(0).tanh())
    last = torch.stack([output[-1] for output in outputs])
    return (torch.cat(outputs, -1), *(last.clone() for _ in states))


def _lstm(
    x: Tensor, hidden: Tensor, cell: Tensor, weights: Sequence[Tensor], bidirectional: bool, train: bool
) -> tuple[Tensor, ...]:
    return _recurrent("lstm", x, (hidden, cell), weights, bidirectional, train)


def _single(kind: str) -> Callable[..., tuple[Tensor, ...]]:
    def run(
        x: Tensor, hidden: Tensor, weights: Sequence[Tensor], bidirectional: bool, train: bool
    ) -> tuple[Tensor, ...]:
        return _recurrent(kind, x, (hidden,), weights, bidirectional, train)

    return run


def _cell(kind: str) -> Callable[..., Any]:
    """One step of a recurrent network; arguments and results are those of ATen's operation."""

    def run(
        x: Tensor,
        hx: Any,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Any:
        states = list(hx) if kind == "lstm" else [hx]
        _need(
            len(states) == (2 if kind == "lstm" else 1) and x.dim() == 2, "input or states do not fit", kind
        )
        width = states[0].shape[-1] if states[0].dim() else 0
        rows = _GATES[kind] * width
        biases = [b for b in (b_ih, b_hh) if b is not None]
        expected: list[tuple[int, ...]] = [(x.shape[0], width)] * len(states)
        expected += [(rows, x.shape[1]), (rows, width), *[(rows,)] * len(biases)]
        _need(len(biases) != 1 and x.numel() * width > 0, "weights are missing or empty", kind)
        _fit(kind, [*states, w_ih, w_hh, *biases], expected, x.dtype)
        return getattr(torch, f"{kind}_cell")(x, hx, w_ih, w_hh, b_ih, b_hh)

    return run


def _weight_norm(direction: Tensor, length: Tensor, dim: int = 0) -> Tensor:
    """`direction` scaled so that its slices along `dim` have the norms `length`; -1: all of it has one.

    Raises:
        ValueError: `length` is not of size 1 but along `dim`, or dtypes differ.
    """
    rank = direction.dim()
    _need(direction.numel() > 0 and -1 <= dim < rank, "dim is out of range", "weight_norm")
    wanted = () if dim < 0 else tuple(direction.shape[i] if i == dim else 1 for i in range(rank))
    _fit("weight_norm", [length], [wanted], direction.dtype)
    return torch._weight_norm(direction, length, dim)


_LAYER = "Tensor[] weights, bool bidirectional, bool train"
_CELL = "Tensor w_ih, Tensor w_hh, Tensor? b_ih=None, Tensor? b_hh=None"
CHECKED_OPS: dict[str, CheckedOp] = {
    "ravnest.lstm_layer.default": CheckedOp(
        f"ravnest::lstm_layer(Tensor x, Tensor hidden, Tensor cell, {_LAYER}) -> (Tensor, Tensor, Tensor)",
        _lstm,
    ),
    **{
        f"ravnest.{kind}_layer.default": CheckedOp(
            f"ravnest::{kind}_layer(Tensor x, Tensor hidden, {_LAYER}) -> (Tensor, Tensor)", _single(kind)
        )
        for kind in ("gru", "rnn_tanh", "rnn_relu")
    },
    "ravnest.lstm_cell.default": CheckedOp(
        f"ravnest::lstm_cell(Tensor x, Tensor[] hx, {_CELL}) -> (Tensor, Tensor)", _cell("lstm")
    ),
    **{
        f"ravnest.{kind}_cell.default": CheckedOp(
            f"ravnest::{kind}_cell(Tensor x, Tensor hx, {_CELL}) -> Tensor", _cell(kind)
        )
        for kind in ("gru", "rnn_tanh", "rnn_relu")
    },
    "ravnest.weight_norm.default": CheckedOp(
        "ravnest::weight_norm(Tensor direction, Tensor length, int dim=0) -> Tensor", _weight_norm
    ),
}
"""By the name under which a program calls them."""
