"""Codecs by name."""

from __future__ import annotations

from ravnest_p2p.core import compression
from ravnest_p2p.training.codecs.base import Codec
from ravnest_p2p.training.codecs.blocks import Blockwise
from ravnest_p2p.training.codecs.halves import BFloat16, Float16


def codec_of(name: str, seed: int | None = None) -> Codec:
    """The codec of that name in `core.compression`; "none" has none.

    Args:
        seed: a codec of whole numbers rounds by chance; None rounds to nearest.
    """
    if name == compression.FP16:
        return Float16()
    return BFloat16() if name == compression.BF16 else Blockwise(name, seed)
