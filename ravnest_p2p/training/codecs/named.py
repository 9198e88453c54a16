"""Codecs by name."""

from __future__ import annotations

from ravnest_p2p.core import compression
from ravnest_p2p.training.codecs.base import Codec
from ravnest_p2p.training.codecs.halves import BFloat16, Float16
from ravnest_p2p.training.codecs.int4 import Int4
from ravnest_p2p.training.codecs.int8 import Int8


def codec_of(name: str, seed: int = 0) -> Codec:
    """The codec of that name in `core.compression`; "none" has none.

    Args:
        seed: of the chance in "int4"; only the sender's counts.
    """
    if name == compression.INT4:
        return Int4(seed)
    codecs: dict[str, type[Codec]] = {codec.name: codec for codec in (Float16, BFloat16, Int8)}
    return codecs[name]()
