"""JSON of a stranger, taken in without being hurt by it.

Problem: a small JSON text becomes forty times its size in Python objects, and says different things to
different readers. Solution: its values are counted before they are made; duplicate keys, numbers that are
none and endless digits are refused.
"""

from __future__ import annotations

import gc
import json
from typing import Any

MAX_DIGITS = 20


def strict_json(data: bytes, limit: int) -> Any:
    """Value of a JSON text of at most `limit` lists, objects and items.

    Raises:
        ValueError: it is not JSON, holds too much, a key twice, NaN or infinity, or too long a number.
    """
    # Each value but the first follows one of these bytes; those within names only count too much.
    items = data.count(b",") + data.count(b"[") + data.count(b"{")
    if items > limit:
        raise ValueError(f"it holds {items} items, over the limit of {limit}")
    collecting = gc.isenabled()
    # JSON makes no cycles, and looking for them among a million new lists takes most of the time.
    gc.disable()
    try:
        return json.loads(
            data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_bounded_int
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    finally:
        if collecting:
            gc.enable()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in an object")
    return found


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _bounded_int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError("a number has too many digits")
    return int(text)
