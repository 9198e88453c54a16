"""Attacks on what a program would do: its sizes, its work, its arguments, and lies about its results."""

from __future__ import annotations

from typing import Any

from tests.property.attack_base import (
    F32,
    HIDDEN,
    I64,
    LABELS,
    LOSS,
    NEW,
    TOKENS,
    WEIGHT,
    Attack,
    Document,
    X,
    bent,
    more,
    node,
    put,
    ref,
)

_OVER = "over the limit"
_GIB = 2**30


def _doubling(document: Document) -> None:
    slot, rows = HIDDEN, 4
    for _ in range(40):
        rows *= 2
        document["nodes"].append(node("cat.default", [[ref(slot), ref(slot)]], (rows, 8)))
        slot = NEW if slot == HIDDEN else slot + 1


def _grown(op: str, args: list[Any], shape: tuple[int, ...], dtype: str = F32) -> Attack:
    """A node that says honestly how large its result is."""
    return more(node(op, args, shape, dtype=dtype), says=_OVER)


BOMBS: dict[str, Attack] = {
    "bomb: repeat": _grown("repeat.default", [ref(X), [2**20, 2**10]], (2**22, 2**13)),
    "bomb: expand": _grown("expand.default", [ref(X), [2**35, 4, 8]], (2**35, 4, 8)),
    "bomb: broadcast_to": _grown("broadcast_to.default", [ref(X), [2**35, 4, 8]], (2**35, 4, 8)),
    "bomb: tile": _grown("tile.default", [ref(X), [2**32]], (4, 2**35)),
    "bomb: cat": more(
        node("zeros.default", [[2**33]], (2**33,)),
        node("cat.default", [[ref(NEW)] * 4096], (2**45,)),
        says=_OVER,
    ),
    "bomb: stack": more(
        node("zeros.default", [[2**33]], (2**33,)),
        node("stack.default", [[ref(NEW)] * 4096], (4096, 2**33)),
        says=_OVER,
    ),
    "bomb: cat doubled forty times": bent(_doubling, _OVER),
    "bomb: pad": _grown("constant_pad_nd.default", [ref(X), [0, 2**36]], (4, 2**36 + 8)),
    "bomb: pad by mode": _grown("pad.default", [ref(X), [0, 2**36], "constant"], (4, 2**36 + 8)),
    "bomb: nearest": more(
        node("view.default", [ref(X), [1, 1, 4, 8]], (1, 1, 4, 8)),
        node("upsample_nearest2d.vec", [ref(NEW), [2**20, 2**20], None], (1, 1, 2**20, 2**20)),
        says=_OVER,
    ),
    "bomb: bilinear by factor": more(
        node("view.default", [ref(X), [1, 1, 4, 8]], (1, 1, 4, 8)),
        node(
            "upsample_bilinear2d.vec",
            [ref(NEW), None, False, [2.0**18, 2.0**18]],
            (1, 1, 2**20, 2**21),
        ),
        says=_OVER,
    ),
    "bomb: bicubic by endless factor": more(
        node("view.default", [ref(X), [1, 1, 4, 8]], (1, 1, 4, 8)),
        node(
            "upsample_bicubic2d.vec",
            [ref(NEW), None, False, [{"float": "inf"}, {"float": "inf"}]],
            (1, 1, 8, 8),
        ),
        says="node 6",
    ),
    "bomb: repeat_interleave": _grown("repeat_interleave.self_int", [ref(X), 2**35, 0], (2**37, 8)),
    "bomb: one_hot": _grown("one_hot.default", [ref(LABELS), 2**40], (4, 2**40), I64),
    "bomb: arange": _grown("arange.default", [2**40], (2**40,), I64),
    "bomb: arange by tiny steps": _grown("arange.start_step", [0, 1.0, 2.0**-40], (2**40,)),
    "bomb: linspace": _grown("linspace.default", [0, 1, 2**40], (2**40,)),
    "bomb: zeros": _grown("zeros.default", [[2**20, 2**20]], (2**20, 2**20)),
    "bomb: full": _grown("full.default", [[2**20, 2**20], 1.0], (2**20, 2**20)),
    "bomb: randn": _grown("randn.default", [[2**20, 2**20]], (2**20, 2**20)),
    "bomb: randint": _grown("randint.default", [7, [2**40]], (2**40,), I64),
    "bomb: new_zeros": _grown("new_zeros.default", [ref(X), [2**40]], (2**40,)),
    "bomb: outer": more(
        node("zeros.default", [[2**20]], (2**20,)),
        node("outer.default", [ref(NEW), ref(NEW)], (2**20, 2**20)),
        says=_OVER,
    ),
    "bomb: broadcast sum": more(
        node("zeros.default", [[2**20, 1]], (2**20, 1)),
        node("zeros.default", [[2**20]], (2**20,)),
        node("add.Tensor", [ref(NEW), ref(NEW + 1)], (2**20, 2**20)),
        says=_OVER,
    ),
    "bomb: broadcast_tensors": more(
        node("zeros.default", [[2**20, 1]], (2**20, 1)),
        node("zeros.default", [[2**20]], (2**20,)),
        node("broadcast_tensors.default", [[ref(NEW), ref(NEW + 1)]], (2**20, 2**20), (2**20, 2**20)),
        says=_OVER,
    ),
    "bomb: embedding of a wide table": more(
        node("zeros.default", [[2, 2**24]], (2, 2**24)),
        node("zeros.default", [[2**16]], (2**16,), dtype=I64, kwargs={"dtype": {"dtype": I64}}),
        node("embedding.default", [ref(NEW), ref(NEW + 1)], (2**16, 2**24)),
        says=_OVER,
    ),
    "bomb: index by two axes": more(
        node("zeros.default", [[2**19, 1]], (2**19, 1), dtype=I64, kwargs={"dtype": {"dtype": I64}}),
        node("zeros.default", [[2**19]], (2**19,), dtype=I64, kwargs={"dtype": {"dtype": I64}}),
        node("index.Tensor", [ref(X), [ref(NEW), ref(NEW + 1)]], (2**19, 2**19)),
        says=_OVER,
    ),
    "bomb: gather": more(
        node(
            "zeros.default",
            [[1, 1]],
            (1, 1),
            dtype=I64,
            kwargs={"dtype": {"dtype": I64}},
        ),
        node("expand.default", [ref(NEW), [4, 2**35]], (4, 2**35), dtype=I64),
        node("gather.default", [ref(X), 1, ref(NEW + 1)], (4, 2**35)),
        says=_OVER,
    ),
    "bomb: convolution of padding": more(
        node("view.default", [ref(X), [1, 1, 4, 8]], (1, 1, 4, 8)),
        node("view.default", [ref(WEIGHT), [64, 1, 1, 1]], (64, 1, 1, 1)),
        node(
            "conv2d.default",
            [ref(NEW), ref(NEW + 1), None, [1, 1], [2**18, 2**18]],
            (1, 64, 2**19 + 4, 2**19 + 8),
        ),
        says=_OVER,
    ),
    "bomb: transposed convolution of strides": more(
        node("view.default", [ref(X), [1, 1, 4, 8]], (1, 1, 4, 8)),
        node("view.default", [ref(WEIGHT), [1, 64, 1, 1]], (1, 64, 1, 1)),
        node(
            "conv_transpose2d.input",
            [ref(NEW), ref(NEW + 1), None, [2**18, 2**18]],
            (1, 64, 3 * 2**18 + 1, 7 * 2**18 + 1),
        ),
        says=_OVER,
    ),
    "bomb: adaptive pool": more(
        node("view.default", [ref(X), [1, 1, 4, 8]], (1, 1, 4, 8)),
        node("adaptive_avg_pool2d.default", [ref(NEW), [2**20, 2**20]], (1, 1, 2**20, 2**20)),
        says=_OVER,
    ),
    "bomb: unbind a billion": more(
        node("arange.default", [_GIB], (_GIB,), dtype=I64),
        node("unbind.int", [ref(NEW)], (), dtype=I64),
        says="pieces",
    ),
    "bomb: split a billion": more(
        node("arange.default", [_GIB], (_GIB,), dtype=I64),
        node("split.Tensor", [ref(NEW), 1], (1,), dtype=I64),
        says="pieces",
    ),
    "bomb: chunk a billion": more(
        node("arange.default", [_GIB], (_GIB,), dtype=I64),
        node("chunk.default", [ref(NEW), _GIB], (1,), dtype=I64),
        says="pieces",
    ),
    "bomb: chunk by keyword": more(
        node("arange.default", [_GIB], (_GIB,), dtype=I64),
        node("chunk.default", [ref(NEW)], (1,), dtype=I64, kwargs={"chunks": _GIB}),
        says="pieces",
    ),
    "bomb: split into sizes": more(node("split.sizes", [ref(X), [0] * 5000], (0, 8)), says=_OVER),
    "bomb: many results of 32 GiB": more(
        node("zeros.default", [[2**33]], (2**33,)),
        *[node("exp.default", [ref(NEW)], (2**33,))] * 200,
        says="together",
    ),
    "bomb: a loss that makes n by n": more(
        node("zeros.default", [[2**24, 1]], (2**24, 1)),
        node("zeros.default", [[2**24]], (2**24,)),
        node("mse_loss.default", [ref(NEW), ref(NEW + 1)], ()),
        says="inside",
    ),
    "bomb: a similarity that makes n by n": more(
        node("zeros.default", [[2**20, 1, 1]], (2**20, 1, 1)),
        node("zeros.default", [[2**20, 1]], (2**20, 1)),
        node("cosine_similarity.default", [ref(NEW), ref(NEW + 1), -1], (2**20, 2**20)),
        says=_OVER,
    ),
}

WORK: dict[str, Attack] = {
    "work: products of wide matrices": more(
        node("zeros.default", [[2**17, 2**16]], (2**17, 2**16)),
        node("zeros.default", [[2**16, 2**17]], (2**16, 2**17)),
        *[node("matmul.default", [ref(NEW), ref(NEW + 1)], (2**17, 2**17))] * 8,
        says="operations",
    ),
    "work: a tall product of one number": more(
        node("zeros.default", [[1, 2**33]], (1, 2**33)),
        node("t.default", [ref(NEW)], (2**33, 1)),
        *[node("matmul.default", [ref(NEW), ref(NEW + 1)], (1, 1))] * 50_000,
        says="items",
    ),
    "work: product by keyword": more(
        node("zeros.default", [[1, 2**33]], (1, 2**33)),
        node("t.default", [ref(NEW)], (2**33, 1)),
        node("matmul.default", [], (1, 1), kwargs={"self": ref(NEW), "other": ref(NEW + 1)}),
        says="by position only",
    ),
    "work: products of a small tensor, expanded": more(
        node("zeros.default", [[1, 2048, 2048]], (1, 2048, 2048)),
        node("expand.default", [ref(NEW), [2048, 2048, 2048]], (2048, 2048, 2048)),
        *[node("bmm.default", [ref(NEW + 1), ref(NEW + 1)], (2048, 2048, 2048))] * 300,
        says="operations|together",
    ),
    "work: a convolution of a wide window": more(
        node("zeros.default", [[1, 64, 4096, 4096]], (1, 64, 4096, 4096)),
        node("zeros.default", [[64, 64, 1025, 1025]], (64, 64, 1025, 1025)),
        node(
            "conv2d.default",
            [ref(NEW), ref(NEW + 1), None, [1, 1], [512, 512]],
            (1, 64, 4096, 4096),
        ),
        says="operations",
    ),
    "work: an average over wide windows": more(
        node("zeros.default", [[1, 1, 65536, 65536]], (1, 1, 65536, 65536)),
        node(
            "avg_pool2d.default",
            [ref(NEW), [16385, 16385], [1, 1], [8192, 8192]],
            (1, 1, 65536, 65536),
        ),
        says="operations",
    ),
    "work: a maximum over wide windows": more(
        node("zeros.default", [[1, 1, 32768, 32768]], (1, 1, 32768, 32768)),
        node("max_pool2d.default", [ref(NEW), [8193], [1], [4096]], (1, 1, 32768, 32768)),
        says="operations",
    ),
    "work: attention over a long text": more(
        node("zeros.default", [[1, 1, 2**26, 64]], (1, 1, 2**26, 64)),
        node("scaled_dot_product_attention.default", [ref(NEW)] * 3, (1, 1, 2**26, 64)),
        says="operations",
    ),
    "work: attention of one query to expanded keys": more(
        node("zeros.default", [[1, 1, 2**20, 64]], (1, 1, 2**20, 64)),
        node("expand.default", [ref(NEW), [32, 1, 2**20, 64]], (32, 1, 2**20, 64)),
        *[
            node(
                "scaled_dot_product_attention.default",
                [ref(NEW), ref(NEW + 1), ref(NEW + 1)],
                (32, 1, 2**20, 64),
            )
        ]
        * 4,
        says="operations|node",
    ),
}

LIES: dict[str, Attack] = {
    "lie: a smaller result": put("nodes/3/3/0/0", [4, 4], "differ"),
    "lie: a larger result": put("nodes/3/3/0/0", [8, 8], "differ"),
    "lie: an empty result": put("nodes/3/3/0/0", [0], "differ"),
    "lie: another dtype": put("nodes/3/3/0/1", "float16", "differ"),
    "lie: one result more": put("nodes/3/3", [[[4, 8], F32]] * 2, "differ"),
    "lie: results by the thousand": put("nodes/3/3", [[[4, 8], F32]] * 4097, _OVER),
    "lie: a result without dtype": put("nodes/3/3", [[[4, 8]]], "a result"),
    "lie: a small bomb": more(node("repeat.default", [ref(X), [2**20, 2**10]], (4, 8)), says="differ"),
}

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
