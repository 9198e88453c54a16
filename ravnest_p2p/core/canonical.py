"""One byte string for one value, so that peers who hold the same value compute the same hash.

Problem: plans and capability snapshots are compared by hash between machines. Solution: JSON with sorted
keys, no spaces, dataclasses as objects, tuples as lists, enums as their values; NaN and infinity are refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    raise TypeError(f"{type(value).__name__} has no canonical form")


def canonical_json(value: object) -> bytes:
    """The value's canonical JSON.

    Args:
        value: dataclasses, mappings with text keys, sequences, enums of text, text, numbers, None.
    Raises:
        ValueError: a float is NaN or infinite.
        TypeError: a type without a canonical form (our fault).
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)
    return text.encode()


def digest(value: object) -> str:
    """Hex SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical_json(value)).hexdigest()
