"""What crosses a stage boundary in fewer bytes: which codecs a job allows, how large they are, which to take.

Problem: on a home link the activations of a micro-batch take longer to send than to compute, but every
codec but "none" costs quality, and both ends have to agree on every byte. Solution: a codec's size follows
from the number of elements alone, so a receiver knows it before it looks; the job names the codecs that it
allows; and where it leaves the choice open, each sender takes, for each frame, the weakest with which the
link keeps up with the computation. The frame names its codec.
"""

from __future__ import annotations

from collections.abc import Sequence

NONE, FP16, BF16, INT8, INT4 = CODECS = ("none", "fp16", "bf16", "int8", "int4")
AUTO = "auto"
COMPRESSIONS = (*CODECS, AUTO)
"""What a job may ask for."""

LADDER = (NONE, FP16, INT8, INT4)
"""What "auto" chooses from, weakest first. bf16 takes as many bytes as fp16 and is 8 times as coarse."""

LEAST_BYTES = 4096
"""Smaller tensors cross exactly: they are statistics or positions, and save nothing."""

FULL = 0.9
"""A link that is busy for a larger share of the computation's time counts as the bottleneck."""

HALF_SCALE_BYTES = 4
INT8_SCALE_BYTES, INT8_BLOCK = 2, 256
INT4_HEAD_BYTES, INT4_SCALE_BYTES, INT4_BLOCK = 16, 1, 32


def allowed(compression: str) -> tuple[str, ...]:
    """The codecs that frames of a job with this setting may name; "none" always, for what must be exact."""
    if compression == AUTO:
        return LADDER
    return (NONE,) if compression == NONE else (NONE, compression)


def encoded_bytes(codec: str, elements: int) -> int:
    """Exact size of so many float32 elements, scales included.

    Raises:
        KeyError: there is no such codec (our bug: names from peers are checked with `allowed`).
    """
    int8_blocks, int4_pairs = -(-elements // INT8_BLOCK), -(-elements // (2 * INT4_BLOCK))
    return {
        NONE: 4 * elements,
        FP16: HALF_SCALE_BYTES + 2 * elements,
        BF16: 2 * elements,
        INT8: int8_blocks * (INT8_SCALE_BYTES + INT8_BLOCK),
        INT4: INT4_HEAD_BYTES + int4_pairs * (2 * INT4_SCALE_BYTES + INT4_BLOCK),
    }[codec]


def least_share(compression: str) -> float:
    """What is left of a large tensor's bytes with the strongest codec that the setting allows."""
    many = 1 << 20
    return min(encoded_bytes(codec, many) for codec in allowed(compression)) / encoded_bytes(NONE, many)


def choose(codecs: Sequence[str], frame_bytes: Sequence[int], link_bps: float, compute_s: float) -> str:
    """The weakest codec with which the link is not the bottleneck; else the one with the fewest bytes.

    Args:
        codecs: allowed ones, weakest first.
        frame_bytes: a micro-batch's frame with each of them, in this direction.
        link_bps: what the link carries in this direction, bits a second; infinity where it never was full.
        compute_s: seconds that the stage computes for one micro-batch; 0 where that is not known yet, which
            takes the weakest.
    """
    if compute_s <= 0:
        return codecs[0]
    for codec, size in zip(codecs, frame_bytes, strict=True):
        if 8 * size <= FULL * compute_s * link_bps:
            return codec
    return min(zip(frame_bytes, codecs, strict=True), key=lambda pair: pair[0])[1]
