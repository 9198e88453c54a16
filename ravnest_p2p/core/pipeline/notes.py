"""What a frame between two stages says beside its tensors, and how much of that is believed.

Problem: a micro-batch that one stage leaves out has to be left out by all, and a norm over the whole model,
or what a round of averaging showed, takes numbers from each; to ask for them would be to wait. Solution: they
ride in the headers of frames that flow anyway. What a peer writes there is checked and bounded before it is
used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ravnest_p2p.core.errors import ChunkMismatchError
from ravnest_p2p.core.pipeline.round_numbers import MOST, Numbers, Told

MAX_WHY_CHARS = 200
MAX_NORM = 1e38
"""Norms above are sent as this; float32 holds it."""

_OUT, _WHY, _NORM, _TOLD = "out", "why", "norm", "told"


class LeftOut(NamedTuple):
    """Why a micro-batch counts nothing: `stage` is where it arose."""

    stage: int
    why: str


class Note(NamedTuple):
    """What rides on an activation or a gradient.

    Attributes:
        left_out: the micro-batch counts nothing, and the frame has no tensors.
        norm: of gradients of other stages (`core.pipeline.global_norm`); 0 where nothing is known.
        told: what a round showed other stages (`core.pipeline.round_numbers`); None where nothing is known.
    """

    left_out: LeftOut | None = None
    norm: float = 0.0
    told: Told | None = None


NO_NOTE = Note()


def left_out(stage: int, why: str) -> LeftOut:
    """Made of a text that may hold anything, so that it fits a header and a terminal."""
    line = "".join(c if c.isascii() and c.isprintable() else "?" for c in why[:MAX_WHY_CHARS])
    return LeftOut(stage, line)


def header_of(note: Note) -> dict[str, Any]:
    """The note as entries of a frame's header; none where it says nothing."""
    header: dict[str, Any] = {}
    if note.left_out is not None:
        header |= {_OUT: note.left_out.stage, _WHY: note.left_out.why}
    if note.norm:
        header[_NORM] = min(note.norm, MAX_NORM)
    if note.told is not None:
        header[_TOLD] = [note.told.round, *note.told.numbers]
    return header


def note_in(header: Mapping[str, Any], stages: int) -> Note:
    """The note in a received frame's header.

    Raises:
        ChunkMismatchError: a stage that does not exist, a text too long, or numbers that are none.
    """
    told = _told_in(header)
    stage, why, norm = header.get(_OUT), header.get(_WHY, ""), header.get(_NORM, 0.0)
    if not isinstance(norm, float) or not 0.0 <= norm <= MAX_NORM or not math.isfinite(norm):
        raise ChunkMismatchError(f"a frame names the norm {norm!r:.40}")
    if stage is None:
        return Note(None, norm, told)
    if type(stage) is not int or not 0 <= stage < stages:
        raise ChunkMismatchError(f"a frame is left out by stage {stage!r:.40} of {stages}")
    if not isinstance(why, str) or len(why) > MAX_WHY_CHARS:
        raise ChunkMismatchError(f"a frame is left out for {why!r:.40}")
    return Note(left_out(stage, why), norm, told)


def _told_in(header: Mapping[str, Any]) -> Told | None:
    told = header.get(_TOLD)
    if told is None:
        return None
    sound = isinstance(told, list) and len(told) == 1 + len(Numbers._fields)
    if not sound or not all(type(one) is int and 0 <= one <= MOST for one in told):
        raise ChunkMismatchError(f"a frame tells of a round {told!r:.40}")
    return Told(told[0], Numbers(*told[1:]))
