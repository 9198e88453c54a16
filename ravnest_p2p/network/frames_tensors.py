"""Tensors described by plain tuples, so that a payload is checked before any tensor is made of it.

Problem: a header says which tensors its payload holds; believing it would let a peer choose what we
allocate and how we read it. Solution: the receiver knows from its own stage which (dtype, shape) it
expects; the description must equal that, and the payload must have exactly those bytes. No torch is
needed for either.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from ravnest_p2p.core.errors import FrameFormatError

TensorSpec = tuple[str, tuple[int, ...]]
"""(torch dtype name without prefix, shape)."""

DTYPE_BYTES = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
}

_MAX_DIMS = 16
_MAX_TENSORS = 4096


def tensor_bytes(spec: TensorSpec) -> int:
    """Bytes of one contiguous tensor."""
    dtype, shape = spec
    return DTYPE_BYTES[dtype] * prod(shape)


def describe(specs: Sequence[TensorSpec]) -> list[list[Any]]:
    """Specs as msgpack types, for a header."""
    return [[dtype, list(shape)] for dtype, shape in specs]


def parse_specs(value: object, max_bytes: int) -> list[TensorSpec]:
    """A header's description as specs, for receivers that cannot know the shapes beforehand.

    Raises:
        FrameFormatError: malformed, an unknown dtype, or more than `max_bytes` in all.
    """
    if not isinstance(value, list) or len(value) > _MAX_TENSORS:
        raise FrameFormatError("tensors must be described by a list")
    specs: list[TensorSpec] = []
    total = 0
    for item in value:
        if not isinstance(item, list) or len(item) != 2:
            raise FrameFormatError("a tensor is described by [dtype, shape]")
        dtype, shape = item
        if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
            raise FrameFormatError("unknown dtype in a tensor's description")
        if not isinstance(shape, list) or len(shape) > _MAX_DIMS or not all(type(n) is int for n in shape):
            raise FrameFormatError("a shape is a list of at most 16 integers")
        if any(n < 0 or n > max_bytes for n in shape):
            raise FrameFormatError("a dimension is negative or over the limit")
        spec = (dtype, tuple(shape))
        total += tensor_bytes(spec)
        if total > max_bytes:
            raise FrameFormatError(f"tensors of more than {max_bytes} bytes")
        specs.append(spec)
    return specs


def split_payload(
    value: object, payload: bytes | bytearray | memoryview, expected: Sequence[TensorSpec]
) -> list[memoryview]:
    """The payload cut into one view for each expected tensor.

    Args:
        value: the header's description; must equal `expected`.
    Raises:
        FrameFormatError: the description or the payload's length differs from what is expected.
    """
    wanted = sum(tensor_bytes(spec) for spec in expected)
    specs = parse_specs(value, max_bytes=wanted)
    if specs != [(dtype, tuple(shape)) for dtype, shape in expected]:
        raise FrameFormatError(f"the frame holds {specs[:4]}, expected {list(expected)[:4]}")
    if len(payload) != wanted:
        raise FrameFormatError(f"payload of {len(payload)} bytes, its tensors need {wanted}")
    view = memoryview(payload)
    parts: list[memoryview] = []
    at = 0
    for spec in specs:
        parts.append(view[at : at + tensor_bytes(spec)])
        at += tensor_bytes(spec)
    return parts
