"""Shapes and lists of numbers that operations with particular wishes accept."""

from __future__ import annotations

import math
from random import Random

SPATIAL = {"conv1d": 1, "conv2d": 2, "conv3d": 3, "conv_transpose1d": 1, "conv_transpose2d": 2}


def operands(name: str, random: Random) -> list[tuple[int, ...]]:
    """Shapes that fit the operations whose tensors are not of one shape; empty for all others."""

    def size() -> int:
        return random.choice((1, 2, 3, 4, 8, 0) if random.random() < 0.3 else (1, 2, 3, 4, 6))

    n, k, m, b = size(), size(), size(), size()
    if name in SPATIAL:
        image = [random.choice((1, 2, 3, 5, 8)) for _ in range(SPATIAL[name])]
        window = [random.choice((1, 1, 2, 3)) for _ in range(SPATIAL[name])]
        weight = (k, m, *window) if "transpose" in name else (m, k, *window)
        return [(b, k, *image), weight, (m,)]
    if "pool" in name or name.startswith(("upsample", "pixel")):
        rank = 2 + spatial_rank(name)
        return [tuple(random.choice((1, 2, 4, 8)) for _ in range(rank))]
    known: dict[str, list[tuple[int, ...]]] = {
        "linear": [(b, n, k), (m, k), (m,)],
        "matmul": [(b, n, k), (k, m)],
        "mm": [(n, k), (k, m)],
        "bmm": [(b, n, k), (b, k, m)],
        "mv": [(n, k), (k,)],
        "dot": [(n,), (n,)],
        "outer": [(n,), (m,)],
        "addmm": [(n, m), (n, k), (k, m)],
        "addbmm": [(n, m), (b, n, k), (b, k, m)],
        "baddbmm": [(b, n, m), (b, n, k), (b, k, m)],
        "embedding": [(n, k), (b, m)],
        "batch_norm": [(b, k, n), (k,), (k,), (k,), (k,)],
        "instance_norm": [(b, k, n, m), (k,), (k,), (k,), (k,)],
        "group_norm": [(b, k, n), (k,), (k,)],
        "layer_norm": [(b, n, k), (k,), (k,)],
        "rms_norm": [(b, n, k), (k,)],
        "scaled_dot_product_attention": [(b, 2, n, k), (b, 2, m, k), (b, 2, m, k), (n, m)],
        "cross_entropy_loss": [(b, k), (b,), (k,)],
        "nll_loss_nd": [(b, k), (b,), (k,)],
        "prelu": [(b, k, n), (k,)],
        "index_select": [(b, n, k), (m,)],
        "cosine_embedding_loss": [(b, k), (b, k), (b,)],
    }
    return known.get(name, [])


def spatial_rank(name: str) -> int:
    return next((int(c) for c in name if c in "123"), 2)


def numbers(name: str, argument: str, base: tuple[int, ...], random: Random) -> tuple[int, ...] | None:
    """A list that the operation takes for a first tensor of that shape; None where any may do."""
    rank = len(base)
    if argument in {"kernel_size", "stride", "dilation"}:
        return tuple(random.choice((1, 1, 2, 3)) for _ in range(random.choice((1, spatial_rank(name)))))
    if argument in {"padding", "output_padding"}:
        return tuple(random.choice((0, 0, 1)) for _ in range(spatial_rank(name)))
    if argument == "output_size":
        return tuple(random.choice((1, 2, 3, 7)) for _ in range(spatial_rank(name)))
    if argument == "normalized_shape":
        return base[-1:]
    if name == "permute":
        return tuple(random.sample(range(rank), rank))
    if argument in {"source", "destination"}:
        return (random.randrange(-rank, rank),) if rank else ()
    if argument in {"split_sizes", "split_size"} and rank:
        first = random.randint(0, base[0])
        return (first, base[0] - first)
    if argument in {"size", "shape"} and name in {"expand", "broadcast_to"}:
        return tuple(random.choice((1, 2, 3)) for _ in range(random.randint(0, 2))) + base
    if argument in {"size", "shape"} and name in {"view", "reshape"}:
        return random.choice(((-1,), (1, -1), (math.prod(base),), base[::-1], (-1, *base[-1:])))
    if argument == "sizes" and rank:
        return random.choice(((1, -1), (-1, 1), (1, base[0]), (-1,)))
    if argument == "pad":
        return tuple(random.choice((-1, 0, 1, 2)) for _ in range(2 * random.randint(1, max(1, rank))))
    return None
