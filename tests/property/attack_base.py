"""A small honest package by hand, and the ways in which attacks bend it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Document = dict[str, Any]
Files = tuple[Any, ...]
"""Arguments of `Package.from_files`."""
X, TOKENS, LABELS, WEIGHT, BIAS, MEAN, VARIANCE, COUNT, FROZEN, HIDDEN, NORMED, RELU, LOSS, NEW = range(14)
"""Slots of the honest program; NEW is the first result of an appended node."""

F32, I64 = "float32", "int64"


def ref(slot: int) -> dict[str, int]:
    return {"slot": slot}


def node(
    op: str, args: Any, *outputs: Any, kwargs: Any = None, no_grad: bool = False, dtype: str = F32
) -> list[Any]:
    """A node whose results have these shapes."""
    return [f"aten.{op}", args, kwargs or {}, [[list(shape), dtype] for shape in outputs], no_grad]


HONEST: Document = {
    "format": "ravnest-program/1",
    "inputs": [["x0", [4, 8], F32, "input"], ["x1", [4], I64, "input"], ["y0", [4], I64, "input"]],
    "params": [["body.weight", [8, 8], F32, "param"], ["body.bias", [8], F32, "param"]],
    "buffers": [
        ["norm.mean", [8], F32, "buffer"],
        ["norm.var", [8], F32, "buffer"],
        ["norm.count", [], I64, "buffer"],
        ["scale", [8], F32, "frozen"],
    ],
    "nodes": [
        node("linear.default", [ref(X), ref(WEIGHT), ref(BIAS)], (4, 8)),
        node("add_.Tensor", [ref(COUNT), 1]),
        node(
            "batch_norm.default",
            [ref(HIDDEN), ref(FROZEN), None, ref(MEAN), ref(VARIANCE), True, 0.1, 1e-5, False],
            (4, 8),
        ),
        node("relu.default", [ref(NORMED)], (4, 8)),
        node("cross_entropy_loss.default", [ref(RELU), ref(LABELS)], ()),
    ],
    "output": LOSS,
    "layers": [5],
    "tied": [],
    "transient": ["norm.count"],
}


def honest() -> Document:
    return copy.deepcopy(HONEST)


@dataclass(frozen=True)
class Attack:
    """One attack.

    Attributes:
        says: regular expression that the refusal matches, so that it is refused for its own reason.
        program: the program's bytes, where the attack is on them.
        files: writes files into a folder and returns their paths, as `Package.from_files` takes them.
    """

    says: str
    program: Callable[[], bytes] | None = None
    files: Callable[[Path], Files] | None = None


def text(data: bytes | str, says: str) -> Attack:
    """Bytes in place of a program."""
    return Attack(says, program=lambda: data if isinstance(data, bytes) else data.encode())


def bent(change: Callable[[Document], object], says: str) -> Attack:
    """The honest program after a change."""

    def program() -> bytes:
        document = honest()
        change(document)
        return json.dumps(document).encode()

    return Attack(says, program=program)


def put(path: str, value: Any, says: str) -> Attack:
    """The honest program with another value at a place such as "nodes/0/1"."""
    keys = [int(key) if key.lstrip("-").isdecimal() else key for key in path.split("/")]

    def change(document: Document) -> None:
        place: Any = document
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return bent(change, says)


def more(*nodes: list[Any], says: str) -> Attack:
    """The honest program with nodes after its own; the first result is slot NEW."""

    def change(document: Document) -> None:
        document["nodes"] += nodes
        document["layers"] = [len(document["nodes"])]

    return bent(change, says)


def leaf(says: str, name: Any = "extra", shape: Any = (2,), dtype: Any = F32, kind: Any = "param") -> Attack:
    """The honest program with one more parameter (or what claims to be one)."""
    return bent(
        lambda d: d["params"].append([name, list(shape) if isinstance(shape, tuple) else shape, dtype, kind]),
        says,
    )
