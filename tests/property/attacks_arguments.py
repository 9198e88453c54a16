"""Attacks by arguments that an operation cannot take, or should not."""

from __future__ import annotations

from typing import Any

from tests.property.attack_base import (
    HIDDEN,
    I64,
    LABELS,
    LOSS,
    NEW,
    TOKENS,
    WEIGHT,
    Attack,
    X,
    bent,
    more,
    node,
    put,
    ref,
)

_IMAGE = node("view.default", [ref(X), [1, 1, 4, 8]], (1, 1, 4, 8))
_KERNEL = node("view.default", [ref(WEIGHT), [1, 1, 8, 8]], (1, 1, 8, 8))


def _wrong(
    op: str, args: list[Any], shape: tuple[int, ...] = (4, 8), says: str = "node 5", **rest: Any
) -> Attack:
    return more(node(op, args, shape, **rest), says=says)


def _convolution(stride: int = 1, padding: int = 4, dilation: int = 1, groups: int = 1) -> Attack:
    args = [ref(NEW), ref(NEW + 1), None, [stride] * 2, [padding] * 2, [dilation] * 2, groups]
    return more(_IMAGE, _KERNEL, node("conv2d.default", args, (1, 1, 5, 9)), says="node 7")


def _pool(*args: Any) -> Attack:
    return more(_IMAGE, node("avg_pool2d.default", [ref(NEW), *args], (1, 1, 2, 4)), says="node 6")


ARGUMENTS: dict[str, Attack] = {
    "dim past the end": _wrong("softmax.int", [ref(X), 2]),
    "dim before the start": _wrong("softmax.int", [ref(X), -3]),
    "dim of 2^48": _wrong("softmax.int", [ref(X), 2**48]),
    "dim over 2^48": _wrong("softmax.int", [ref(X), 2**49], says="not a valid int"),
    "dim as a fraction": _wrong("softmax.int", [ref(X), 1.0], says="not a valid int"),
    "dim as a truth value": _wrong("softmax.int", [ref(X), True], says="not a valid int"),
    "dims twice": _wrong("permute.default", [ref(X), [0, 0]]),
    "dims of a sum twice": _wrong("sum.dim_IntList", [ref(X), [0, 0]], (8,)),
    "index past the end": _wrong("select.int", [ref(X), 0, 4], (8,)),
    "index before the start": _wrong("select.int", [ref(X), 0, -5], (8,)),
    "slice of step zero": _wrong("slice.Tensor", [ref(X), 0, 0, 4, 0]),
    "slice backwards": _wrong("slice.Tensor", [ref(X), 0, 4, 0, -1]),
    "narrow past the end": _wrong("narrow.default", [ref(X), 0, 2, 4]),
    "narrow by a negative length": _wrong("narrow.default", [ref(X), 0, 2, -1], (0, 8)),
    "view of another size": _wrong("view.default", [ref(X), [5, 8]], (5, 8)),
    "view of a negative size": _wrong("view.default", [ref(X), [-2, 16]]),
    "view of two unknown sizes": _wrong("view.default", [ref(X), [-1, -1]]),
    "view of sizes that overflow": _wrong("view.default", [ref(X), [2**33, 2**31]]),
    "zeros of a negative size": _wrong("zeros.default", [[-1]], (0,)),
    "zeros of overflowing size": _wrong("zeros.default", [[2**47, 2**47]], (0,)),
    "zeros of overflow behind a zero": _wrong(
        "zeros.default", [[0, 2**47, 2**47]], (0, 2**47, 2**47), says="too large"
    ),
    "repeat a negative number of times": _wrong("repeat.default", [ref(X), [-1, 1]], (0, 8)),
    "expand to a smaller size": _wrong("expand.default", [ref(X), [2, 8]], (2, 8)),
    "pad by a negative number past the end": _wrong("constant_pad_nd.default", [ref(X), [-9, 0]], (4, 0)),
    "pad by reflection over the size": _wrong("pad.default", [ref(X), [9, 9], "reflect"], (4, 26)),
    "pad in an unknown way": _wrong("pad.default", [ref(X), [1, 1], "evil"], says="not a valid str"),
    "unflatten to overflow": _wrong("unflatten.int", [ref(X), 1, [2**32, 2**32]]),
    "pixel shuffle by 2^32": more(
        _IMAGE, node("pixel_shuffle.default", [ref(NEW), 2**32], (1, 1, 4, 8)), says="node 6"
    ),
    "pixel shuffle by zero": more(
        _IMAGE, node("pixel_unshuffle.default", [ref(NEW), 0], (1, 1, 4, 8)), says="node 6"
    ),
    "convolution of stride zero": _convolution(stride=0),
    "convolution of negative padding": _convolution(padding=-1),
    "convolution of dilation zero": _convolution(dilation=0),
    "convolution of no groups": _convolution(groups=0),
    "convolution of negative groups": _convolution(groups=-1),
    "convolution of endless dilation": _convolution(dilation=2**48),
    "pool of window zero": _pool([0, 0]),
    "pool of stride zero": _pool([2, 2], [0, 0]),
    "pool of padding over half its window": _pool([2, 2], [2, 2], [2, 2]),
    "pool divided by zero": _pool([2, 2], [2, 2], [0, 0], False, True, 0),
    "maxima over padding alone": more(
        node("zeros.default", [[3, 1, 8]], (3, 1, 8)),
        node("max_pool2d.default", [ref(NEW), [2, 3], [], [1, 1], [2], True], (3, 1, 3)),
        says="misses",
    ),
    "maxima over padding alone, in a row": more(
        node("zeros.default", [[3, 1]], (3, 1)),
        node("max_pool1d.default", [ref(NEW), [2], [], [1], [2], True], (3, 1)),
        says="misses",
    ),
    "norm of no groups": _wrong("group_norm.default", [ref(X), 0]),
    "norm of another shape": _wrong("layer_norm.default", [ref(X), [2**40]]),
    "norm with a weight of another size": _wrong("layer_norm.default", [ref(X), [8], ref(WEIGHT)]),
    "product of shapes that do not meet": _wrong("mm.default", [ref(X), ref(X)], (4, 4)),
    "linear with a weight of another size": put("nodes/0/1/1", ref(X), "node 0"),
    "loss over labels of another size": put("nodes/4/1/1", ref(WEIGHT), "node 4"),
    "embedding by fractions": _wrong("embedding.default", [ref(WEIGHT), ref(X)], (4, 8, 8)),
    "embedding with sparse gradients": _wrong(
        "embedding.default", [ref(WEIGHT), ref(TOKENS), -1, False, True], (4, 8), says="cannot be sent"
    ),
    "gather with sparse gradients": more(
        node("gather.default", [ref(X), 0, ref(TOKENS)], (4,), kwargs={"sparse_grad": True}),
        says="cannot be sent",
    ),
    "gather of another rank": _wrong("gather.default", [ref(X), 0, ref(TOKENS)], (4,)),
    "index of shape by data": more(
        node("gt.Scalar", [ref(X), 0], (4, 8), dtype="bool"),
        node("index.Tensor", [ref(X), [ref(NEW)]], (4,)),
        says="node 6",
    ),
    "one_hot of size by data": _wrong("one_hot.default", [ref(LABELS), -1], (4, 8), dtype=I64),
    "more largest than there are": more(node("topk.default", [ref(X), 9], (4, 9), (4, 9)), says="node 5"),
    "split into nothing": _wrong("split.Tensor", [ref(X), 0]),
    "split into negative pieces": _wrong("split.Tensor", [ref(X), -1]),
    "chunk into nothing": _wrong("chunk.default", [ref(X), 0]),
    "arange of step zero": _wrong("arange.start_step", [0, 4, 0], (4,), dtype=I64),
    "arange to nowhere": _wrong("arange.default", [{"float": "nan"}], (0,)),
    "arange to infinity": _wrong("arange.default", [{"float": "inf"}], (0,)),
    "linspace of negative steps": _wrong("linspace.default", [0, 1, -1], (0,)),
    "dropout of nothing known": _wrong("dropout.default", [ref(X), {"float": "nan"}, True]),
    "dropout of more than all": _wrong("dropout.default", [ref(X), 1.5, True]),
    "dropout of less than nothing": _wrong("dropout.default", [ref(X), -0.5, True]),
    "bernoulli of infinity": _wrong("bernoulli.p", [ref(X), {"float": "inf"}]),
    "uniform from high to low": _wrong("uniform.default", [ref(X), 1.0, 0.0]),
    "uniform over everything": _wrong("uniform.default", [ref(X), {"float": "-inf"}, {"float": "inf"}]),
    "randint from high to low": _wrong("randint.low", [5, 5, [2]], (2,), dtype=I64),
    "truncated division of whole numbers": more(
        node(
            "div.Tensor_mode", [ref(TOKENS), ref(LABELS)], (4,), dtype=I64, kwargs={"rounding_mode": "trunc"}
        ),
        says="not safe",
    ),
    "truncated division that lies about its dtype": more(
        node("div.Tensor_mode", [ref(TOKENS), ref(LABELS)], (4,), kwargs={"rounding_mode": "trunc"}),
        says="differ",
    ),
    "whole numbers averaged by a divisor of -1": more(
        node("reshape.default", [ref(TOKENS), [1, 1, 4]], (1, 1, 4), dtype=I64),
        node("avg_pool2d.default", [ref(NEW), [1], [1], [0], False, True, -1], (1, 1, 4), dtype=I64),
        says="not positive",
    ),
    "an unknown rounding": more(
        node("div.Tensor_mode", [ref(X), ref(X)], (4, 8), kwargs={"rounding_mode": "evil"}),
        says="not a valid",
    ),
    "to a complex dtype": _wrong("to.dtype", [ref(X), {"dtype": "complex64"}], says="unknown value"),
    "to a dtype by number": _wrong("to.dtype", [ref(X), 6], says="not a valid ScalarType"),
    "channels last of a matrix": _wrong(
        "clone.default", [ref(X)], kwargs={"memory_format": {"memory_format": "channels_last"}}
    ),
    "bits of a fraction": _wrong("bitwise_not.default", [ref(X)]),
    "a scalar in place of a list of tensors": _wrong("cat.default", [ref(X)], says="not a valid"),
    "no tensors to join": _wrong("cat.default", [[]]),
    "attention without heads": more(
        node("zeros.default", [[1, 0, 4, 8]], (1, 0, 4, 8)),
        node("zeros.default", [[1, 4, 4, 8]], (1, 4, 4, 8)),
        node(
            "scaled_dot_product_attention.default",
            [ref(NEW + 1), ref(NEW), ref(NEW)],
            (1, 4, 4, 8),
            kwargs={"enable_gqa": True},
        ),
        says="node 7",
    ),
    "attention with more values than keys": more(
        node("zeros.default", [[2, 4, 4, 8]], (2, 4, 4, 8)),
        node("zeros.default", [[2, 4, 2, 8]], (2, 4, 2, 8)),
        node("zeros.default", [[2, 4, 64, 8]], (2, 4, 64, 8)),
        node(
            "scaled_dot_product_attention.default",
            [ref(NEW), ref(NEW + 1), ref(NEW + 2)],
            (2, 4, 4, 8),
        ),
        says="do not fit together",
    ),
    "attention with fewer heads of values": more(
        node("zeros.default", [[2, 4, 4, 8]], (2, 4, 4, 8)),
        node("zeros.default", [[2, 1, 4, 8]], (2, 1, 4, 8)),
        node(
            "scaled_dot_product_attention.default",
            [ref(NEW), ref(NEW), ref(NEW + 1)],
            (2, 4, 4, 8),
        ),
        says="do not fit together",
    ),
    "a recurrent layer whose weights do not fit": more(
        node("zeros.default", [[4, 2, 8]], (4, 2, 8)),
        node("zeros.default", [[1, 2, 3]], (1, 2, 3)),
        node(
            "lstm.input",
            [ref(NEW), [ref(NEW + 1)] * 2, [ref(WEIGHT)] * 2, False, 1, 0.0, True, False, False],
            (4, 2, 3),
            (1, 2, 3),
            (1, 2, 3),
        ),
        says="node 7",
    ),
    "a loss that is reduced in an unknown way": _wrong("mse_loss.default", [ref(X), ref(HIDDEN), 9], ()),
    "a gradient of a whole number": put("output", NEW, "output"),
    "a loss of whole numbers": bent(
        lambda d: (
            d["nodes"].append(node("argmax.default", [ref(LOSS)], (), dtype=I64)),
            d.update(layers=[6], output=NEW),
        ),
        "scalar loss",
    ),
    "a loss that is detached": bent(
        lambda d: (
            d["nodes"].append(node("detach.default", [ref(LOSS)], ())),
            d.update(layers=[6], output=NEW),
        ),
        "does not depend",
    ),
}
