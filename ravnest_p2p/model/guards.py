"""What the operations themselves fail to check, checked before they run, on fake or real tensors.

Problem: some kernels trust their operands (attention reads past its keys where there are more values, a
maximum over nothing is written back outside of the image), some abstract ones take arguments that the real
ones refuse, some cut a tensor into a billion pieces. Solution: a rule for each such operation, over its
arguments by name and the shapes of its operands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from ravnest_p2p.model import ops
from ravnest_p2p.model.node import Arg, Node, Ref

MAX_PIECES = 4096

Fetch = Callable[[int], Tensor]
Given = Mapping[str, Arg]


def guard(node: Node, fetch: Fetch) -> None:
    """Refuse what the operation would not.

    Args:
        fetch: gives the tensor of a slot; only shapes and dtypes are looked at.
    Raises:
        ValueError: says what is wrong.
    """
    rule = _RULES.get(node.op.split(".")[1])
    if rule is not None:
        rule(arguments(node), fetch)


def arguments(node: Node) -> dict[str, Arg]:
    """The arguments that are given, by name."""
    names = [argument.name for argument in ops.resolve(node.op)._schema.arguments]
    return {**dict(zip(names, node.args, strict=False)), **dict(node.kwargs)}


def _shape(value: Arg | None, fetch: Fetch) -> tuple[int, ...]:
    return tuple(fetch(value.slot).shape) if isinstance(value, Ref) else ()


def _pieces(given: Given, fetch: Fetch) -> None:
    shape, dim = _shape(given["self"], fetch), given.get("dim", 0)
    if not isinstance(dim, int) or not -len(shape) <= dim < len(shape):
        raise ValueError(f"dim {dim} is not one of {len(shape)} dimensions")
    if "chunks" in given:
        pieces: Any = given["chunks"]
    elif isinstance(size := given.get("split_size"), int):
        pieces = -(-shape[dim] // max(1, size))
    else:
        pieces = 0 if "split_size" in given else shape[dim]
    if pieces > MAX_PIECES:
        raise ValueError(f"more than {MAX_PIECES} pieces")


def _dim(given: Given, fetch: Fetch) -> None:
    rank, dim = max(1, len(_shape(given["self"], fetch))), given["dim"]
    if not isinstance(dim, int) or not -rank <= dim < rank:
        raise ValueError(f"dim {dim} is not one of {rank} dimensions")


def _whole(given: Given, fetch: Fetch) -> None:
    for value in given.values():
        if isinstance(value, float) or (isinstance(value, Ref) and fetch(value.slot).is_floating_point()):
            raise ValueError("bits of floating numbers are not to be had")


def _share(given: Given, fetch: Fetch) -> None:
    share: Any = given.get("p", 0.5)
    if not isinstance(share, Ref) and not 0.0 <= share <= 1.0:
        raise ValueError(f"{share} is not a probability")


def _range(given: Given, fetch: Fetch) -> None:
    low: Any = given.get("from", 0.0)
    high: Any = given.get("to", 1.0)
    if not (-_LARGE < low <= high < _LARGE):
        raise ValueError(f"{low} … {high} is not a range to draw from")


def _windows(given: Given, fetch: Fetch, rank: int) -> None:
    """A window that lies in the padding alone yields an index outside of the image; backward writes there."""
    image = _shape(given["self"], fetch)
    for axis, size in enumerate(image[-rank:]):
        window, padding, step = (
            _of_axis(given.get(name), axis, otherwise)
            for name, otherwise in (("kernel_size", 1), ("padding", 0), ("dilation", 1))
        )
        if padding > 0 and (step > size or -(-padding // step) >= window):
            raise ValueError(f"a window of {window} by steps of {step} misses an image of {size}")


def _of_axis(value: Arg | None, axis: int, otherwise: int) -> int:
    sizes = [n for n in value if isinstance(n, int)] if isinstance(value, tuple) else []
    return max(otherwise, sizes[min(axis, len(sizes) - 1)]) if sizes else otherwise


def _attention(given: Given, fetch: Fetch) -> None:
    """The CPU kernel takes the number of keys, heads and batches from whichever operand it likes best."""
    query, key, value = (_shape(given[name], fetch) for name in ("query", "key", "value"))
    if not (len(query) == len(key) == len(value) and len(query) >= 2):
        raise ValueError("query, key and value have different ranks")
    if key[:-1] != value[:-1] or query[-1] != key[-1] or query[:-3] != key[:-3]:
        raise ValueError(f"query {query}, key {key} and value {value} do not fit together")
    if len(query) > 2 and query[-3] != key[-3]:
        grouped = given.get("enable_gqa", False) and key[-3] > 0 and query[-3] % key[-3] == 0
        if not grouped:
            raise ValueError(f"{query[-3]} heads of queries do not fit {key[-3]} heads of keys")
    scores = (*query[:-1], key[-2])
    mask = _shape(given.get("attn_mask"), fetch)
    fits = zip(reversed(mask), reversed(scores), strict=False)
    if len(mask) > len(scores) or any(n not in (1, size) for n, size in fits):
        raise ValueError(f"a mask of {mask} does not fit scores of {scores}")


_LARGE = 1e30
_RULES: dict[str, Callable[[Given, Fetch], None]] = {
    "bernoulli": _share,
    "bitwise_and": _whole,
    "bitwise_not": _whole,
    "bitwise_or": _whole,
    "bitwise_xor": _whole,
    "chunk": _pieces,
    "log_softmax": _dim,
    "max_pool1d": partial(_windows, rank=1),
    "max_pool2d": partial(_windows, rank=2),
    "scaled_dot_product_attention": _attention,
    "softmax": _dim,
    "split": _pieces,
    "unbind": _pieces,
    "uniform": _range,
}
