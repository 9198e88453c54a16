"""Random arguments of an operation, read from its schema: mostly sensible, often on the edge, or absurd."""

from __future__ import annotations

from random import Random
from typing import Any

from ravnest_p2p.model import Ref, ops
from tests.fuzz.draft import Draft

FLOATS = ("float32", "float32", "float32", "float64", "bfloat16", "float16")
WHOLE = ("int64", "int64", "int32", "int16", "int8", "uint8", "bool")
SIZES = (0, 1, 1, 2, 2, 3, 4, 5, 8)
EDGES = (-(2**48), -(2**31), -7, -2, -1, 0, 1, 2, 3, 7, 2**15, 2**31 - 1, 2**31, 2**40, 2**48)
NUMBERS = (0.0, 1.0, 0.5, -1.0, 1e-5, 2.0, 1e300, -1e300, 1e-300, float("inf"), float("-inf"), float("nan"))
INDEX_NAMES = {"indices", "index", "target", "condition", "mask"}
BOOLS = {"condition", "mask"}
WRITTEN = {"running_mean", "running_var"}


class Arguments:
    """Draws the arguments of one operation, adding the leaves that it needs to the draft."""

    def __init__(self, random: Random, draft: Draft, op: str) -> None:
        self._random = random
        self._draft = draft
        self._op = op
        self._name = op.split(".")[1]
        self._dtype = random.choice(FLOATS if random.random() < 0.75 else WHOLE)
        self._shapes = iter(self._template())
        self._base: tuple[int, ...] = ()

    def draw(self) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments."""
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        arguments = ops.resolve(self._op)._schema.arguments
        for place, argument in enumerate(arguments):
            kind, name = str(argument.real_type), argument.name
            optional = argument.has_default_value()
            if kind in {"Optional[Device]", "Optional[Layout]", "Optional[Generator]"}:
                if argument.kwarg_only:
                    continue
                args.append(None)
                continue
            if optional and self._random.random() < 0.4:
                if argument.kwarg_only:
                    continue
                args.append(_plain(argument.default_value))
                continue
            written = (place == 0 and self._op in ops.MUTATING_OPS) or name in WRITTEN
            value = self._value(kind, name, written)
            if argument.kwarg_only:
                kwargs[name] = value
            else:
                args.append(value)
        return args, kwargs

    def _value(self, kind: str, name: str, written: bool) -> Any:
        random = self._random
        if kind.startswith("Optional["):
            inner = kind[len("Optional[") : -1]
            return None if random.random() < 0.3 else self._value(inner, name, written)
        if kind.startswith("List["):
            inner = kind[len("List[") : -1]
            return tuple(self._value(inner, name, written) for _ in range(self._length(name)))
        if kind == "Tensor":
            return self._tensor(name, written)
        if kind == "int":
            return self._int(name)
        if kind == "bool":
            return random.random() < 0.5
        if kind == "float":
            return random.choice(NUMBERS)
        if kind == "number":
            return random.choice([random.choice(NUMBERS), random.choice(EDGES), True, 2, -1, 0])
        if kind == "str":
            return random.choice(sorted(ops.STRINGS))
        if kind == "ScalarType":
            return ops.DTYPES[random.choice((*FLOATS, *WHOLE))]
        if kind == "MemoryFormat":
            return random.choice(list(ops.MEMORY_FORMATS.values()))
        return None

    def _length(self, name: str) -> int:
        if name in {"tensors", "indices"}:
            return self._random.choice((0, 1, 2, 2, 3))
        if name in {"kernel_size", "stride", "padding", "dilation", "output_padding", "output_size"}:
            digits = [c for c in self._name if c in "123"]
            return self._random.choice((1, int(digits[0]) if digits else 2, 2))
        if name in {"pad"}:
            return self._random.choice((2, 4, 6, 3))
        if name in {"normalized_shape"}:
            return 1
        return self._random.choice((0, 1, 2, len(self._base), len(self._base), 3))

    def _int(self, name: str) -> int:
        random, rank = self._random, len(self._base)
        if random.random() < 0.08:
            return random.choice(EDGES)
        if name.startswith(("dim", "axis", "start_dim", "end_dim")) and name != "dims":
            return random.randint(-rank - 1, rank)
        if name == "dims" and self._name != "tile":
            return random.randint(-rank, rank)
        if name == "num_groups" or name == "groups":
            return random.choice((1, 1, 2, 4))
        if name == "normalized_shape":
            return self._base[-1] if self._base else 1
        if name == "reduction":
            return random.choice((0, 1, 2))
        if name in {"ignore_index", "padding_idx"}:
            return random.choice((-100, -1, 0, 1))
        if name in {"size", "shape"} and self._base and random.random() < 0.6:
            return random.choice((*self._base, -1))
        return random.choice((-1, 0, 1, 1, 1, 2, 2, 3, 4))

    def _tensor(self, name: str, written: bool) -> Ref:
        random, draft = self._random, self._draft
        shape = next(self._shapes, None)
        if shape is None:
            shape = self._related()
        if random.random() < 0.06:
            shape = tuple(random.choice(SIZES) for _ in range(random.randint(0, 5)))
        self._base = self._base or shape
        if not written and draft.nodes and random.random() < 0.25:
            same = [n for n, fake in enumerate(draft.fakes) if tuple(fake.shape) == shape]
            if same:
                return Ref(random.choice(same))
        dtype = self._dtype
        if name in INDEX_NAMES and random.random() < 0.9:
            dtype = "bool" if name in BOOLS else random.choice(("int64", "int64", "int64", "int32"))
            if name == "target" and self._name in {"mse_loss", "l1_loss", "huber_loss", "kl_div"}:
                dtype = self._dtype
        elif random.random() < 0.05:
            dtype = random.choice((*FLOATS, *WHOLE))
        floating = ops.DTYPES[dtype].is_floating_point
        kind = (
            "buffer" if written else random.choice(("param", "param", "input") if floating else ("buffer",))
        )
        value = draft.leaf(shape, dtype, kind)
        return Ref(value if written else self._viewed(value))

    def _viewed(self, value: int) -> int:
        """At times the same shape with other strides."""
        choice, rank = self._random.random(), self._draft.fakes[value].dim()
        if choice < 0.05 and rank > 1:
            (turned,) = self._draft.add("aten.transpose.int", [Ref(value), 0, rank - 1])
            (value,) = self._draft.add("aten.clone.default", [Ref(turned)])
            (value,) = self._draft.add("aten.transpose.int", [Ref(value), 0, rank - 1])
        elif choice < 0.1 and rank > 0:
            (first,) = self._draft.add("aten.slice.Tensor", [Ref(value), 0, 0, 1, 1])
            size = tuple(self._draft.fakes[value].shape)
            if size[0] > 0:
                (value,) = self._draft.add("aten.expand.default", [Ref(first), size])
        return value

    def _related(self) -> tuple[int, ...]:
        """A shape that may go with the first one."""
        random = self._random
        if not self._base:
            return tuple(random.choice(SIZES) for _ in range(random.choice((0, 1, 1, 2, 2, 3, 3, 4, 4, 5))))
        shape = tuple(n if random.random() < 0.9 else 1 for n in self._base)
        return shape if random.random() < 0.8 else shape[random.randint(0, len(shape)) :]

    def _template(self) -> list[tuple[int, ...]]:
        """Shapes that fit the operations whose operands are not of one shape."""

        def size() -> int:
            return self._random.choice((1, 2, 3, 4, 8, 0) if self._random.random() < 0.3 else (1, 2, 3, 4, 6))

        n, k, m, b = size(), size(), size(), size()
        name = self._name
        spatial = {"conv1d": 1, "conv2d": 2, "conv3d": 3, "conv_transpose1d": 1, "conv_transpose2d": 2}
        if name in spatial:
            image = [self._random.choice((1, 2, 3, 5, 8)) for _ in range(spatial[name])]
            window = [self._random.choice((1, 1, 2, 3)) for _ in range(spatial[name])]
            weight = (k, m, *window) if "transpose" in name else (m, k, *window)
            return [(b, k, *image), weight, (m,)]
        pools = {"1": 3, "2": 4}
        digit = next((c for c in name if c in pools), "")
        if "pool" in name or name.startswith(("upsample", "pixel")):
            rank = pools.get(digit, 4)
            return [tuple(self._random.choice((1, 2, 4, 8)) for _ in range(rank))]
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


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
