"""Random arguments of an operation, read from its schema: mostly sensible, often on the edge, or absurd."""

from __future__ import annotations

from random import Random
from typing import Any

from ravnest_p2p.model import Ref, ops
from tests.fuzz.draft import Draft
from tests.fuzz.shapes import numbers, operands

FLOATS = ("float32", "float32", "float32", "float64", "bfloat16", "float16")
WHOLE = ("int64", "int64", "int32", "int16", "int8", "uint8", "bool")
SIZES = (0, 1, 1, 2, 2, 3, 4, 5, 8)
EDGES = (-(2**48), -(2**31), -7, -2, -1, 0, 1, 2, 3, 7, 2**15, 2**31 - 1, 2**31, 2**40, 2**48)
SHARES = (0.0, 0.5, 1.0, 0.1)
NUMBERS = (0.0, 1.0, 0.5, -1.0, 1e-5, 2.0, 1e300, -1e300, 1e-300, float("inf"), float("-inf"), float("nan"))
INDEX_NAMES = {"indices", "index", "target", "condition", "mask"}
BOOLS = {"condition", "mask"}
WRITTEN = {"running_mean", "running_var"}
_STRINGS = {
    "padding": ("same", "valid"),
    "mode": ("constant", "reflect", "replicate", "circular"),
    "approximate": ("none", "tanh"),
    "rounding_mode": ("floor", "trunc"),
}


class Arguments:
    """Draws the arguments of one operation, adding the leaves that it needs to the draft."""

    def __init__(self, random: Random, draft: Draft, op: str) -> None:
        self._random = random
        self._draft = draft
        self._op = op
        self._name = op.split(".")[1]
        self._dtype = random.choice(FLOATS if random.random() < 0.75 else WHOLE)
        self._shapes = iter(operands(self._name, random))
        self._base: tuple[int, ...] = ()
        self._loose = random.choice((0.0, 0.05, 0.05, 0.5))
        self._by_size = random.random() < 0.5

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
        if name in {"pin_memory", "sparse", "sparse_grad"}:
            return random.random() < 0.02 or (None if kind.startswith("Optional") else False)
        if self._name.startswith("upsample") and kind.startswith("Optional[List["):
            if (name == "output_size") != self._by_size and random.random() < 0.95:
                return None
            kind = kind[len("Optional[") : -1]
        if kind == "List[int]" and random.random() < 0.8:
            chosen = numbers(self._name, name, self._base, random)
            if chosen is not None:
                return chosen
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
            return random.choice(SHARES if name == "p" and random.random() < 0.8 else NUMBERS)
        if kind == "number":
            return random.choice([random.choice(NUMBERS), random.choice(EDGES), True, 2, -1, 0])
        if kind == "str":
            fitting = _STRINGS.get(name, ())
            return random.choice(fitting if fitting and random.random() < 0.9 else sorted(ops.STRINGS))
        if kind == "ScalarType":
            return ops.DTYPES[random.choice((*FLOATS, *WHOLE))]
        if kind == "MemoryFormat":
            return random.choice(list(ops.MEMORY_FORMATS.values()))
        return None

    def _length(self, name: str) -> int:
        if name in {"tensors", "indices"}:
            return self._random.choice((0, 1, 2, 2, 3))
        if name == "scale_factors":
            return 2
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
        if random.random() < self._loose / 2:
            shape = tuple(random.choice(SIZES) for _ in range(random.randint(0, 5)))
        elif random.random() < self._loose and shape:
            place = random.randrange(len(shape))
            shape = (*shape[:place], random.choice((0, 1, 2, 7, 33)), *shape[place + 1 :])
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
        if self._op in {"aten.one_hot.default", "aten.masked_fill.Tensor"} and random.random() < 0.9:
            dtype = "int64" if self._name == "one_hot" else dtype
            shape = () if name == "value" else shape
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


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
