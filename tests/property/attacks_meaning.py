"""Attacks on what a program would do: its sizes, its work, and lies about its results."""

from __future__ import annotations

from typing import Any

from tests.property.attack_base import (
    F32,
    HIDDEN,
    I64,
    LABELS,
    NEW,
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
