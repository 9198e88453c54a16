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


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


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
    _need(
        x.dim() == 3 and x.numel() > 0 and x.shape[0] <= MAX_STEPS,
        f"{kind}: input is not (steps, batch, features)",
    )
    hidden = states[0]
    _need(
        hidden.dim() == 3 and hidden.numel() > 0,
        f"{kind}: the hidden state is not (directions, batch, width)",
    )
    width = hidden.shape[2]
    for state in states:
        _need(
            state.shape == (directions, x.shape[1], width),
            f"{kind}: a state of shape {tuple(state.shape)} does not fit",
        )
    rows = _GATES[kind] * width
    shapes = [(rows, x.shape[2]), (rows, width), (rows,), (rows,)]
    biased = len(weights) == 4 * directions
    _need(biased or len(weights) == 2 * directions, f"{kind}: {len(weights)} weights do not fit")
    expected = (shapes if biased else shapes[:2]) * directions
    for weight, shape in zip(weights, expected, strict=True):
        _need(weight.shape == shape, f"{kind}: a weight of shape {tuple(weight.shape)} is not {shape}")
    _need(
        x.dtype.is_floating_point and all(t.dtype == x.dtype for t in (*states, *weights)),
        f"{kind}: dtypes differ",
    )
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
            len(states) == (2 if kind == "lstm" else 1) and x.dim() == 2,
            f"{kind}_cell: input or states do not fit",
        )
        width = states[0].shape[-1]
        rows = _GATES[kind] * width
        expected = [(x.shape[0], width)] * len(states) + [(rows, x.shape[1]), (rows, width), (rows,), (rows,)]
        _need((b_ih is None) == (b_hh is None), f"{kind}_cell: one bias alone does not fit")
        given = [t for t in (*states, w_ih, w_hh, b_ih, b_hh) if t is not None]
        for tensor, shape in zip(given, expected, strict=False):
            _need(tensor.shape == shape and tensor.dtype == x.dtype, f"{kind}_cell: a tensor is not {shape}")
        _need(x.dtype.is_floating_point and x.numel() * width > 0, f"{kind}_cell: input is empty or not real")
        return getattr(torch, f"{kind}_cell")(x, hx, w_ih, w_hh, b_ih, b_hh)

    return run


def _weight_norm(direction: Tensor, length: Tensor, dim: int = 0) -> Tensor:
    """`direction` scaled so that its slices along `dim` have the norms `length`.

    Raises:
        ValueError: `length` is not of size 1 but along `dim`, or dtypes differ.
    """
    rank = direction.dim()
    _need(direction.numel() > 0 and -1 <= dim < rank, "weight_norm: dim is out of range")
    wanted = [direction.shape[i] if i == dim else 1 for i in range(rank)] if dim >= 0 else []
    _need(list(length.shape) == wanted, f"weight_norm: lengths {tuple(length.shape)} are not {wanted}")
    _need(direction.dtype.is_floating_point and length.dtype == direction.dtype, "weight_norm: dtypes differ")
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
