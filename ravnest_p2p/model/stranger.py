"""Files and JSON of a stranger, taken in without being hurt by them.

Problem: before anybody looks at what a file says, opening it can hang (a pipe), lead elsewhere (a link), or
fill the memory (a small JSON text becomes forty times its size in Python objects). Solution: only ordinary
files, read up to a limit; JSON whose values are counted before they are made, without duplicate keys, numbers
that are none, or endless digits.
"""

from __future__ import annotations

import gc
import json
import os
import stat
from pathlib import Path
from typing import Any

from ravnest_p2p.core.errors import PackageError

MAX_DIGITS = 20


def read_ordinary(path: str | os.PathLike[str], limit: int, *, head_only: bool = False) -> bytes:
    """At most `limit` bytes of an ordinary file that lies at this very place.

    Args:
        head_only: a longer file is cut at the limit instead of refused.
    Raises:
        PackageError: it is missing, unreadable, no ordinary file, a link, or too long.
    """
    name = Path(path).name[:100]
    try:
        # Without O_NONBLOCK, opening a pipe waits for whoever writes to it.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise PackageError(f"file {name!r} cannot be read: {error}") from error
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        os.close(handle)
        raise PackageError(f"{name!r} is not an ordinary file")
    with os.fdopen(handle, "rb") as file:
        if not head_only and found.st_size > limit:
            raise PackageError(f"file {name!r} has {found.st_size} bytes, over the limit of {limit}")
        return file.read(limit)


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
