"""Pieces as stages leave them, for what loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ravnest_p2p.training import draft_piece


def save_piece(path: Path, *state: Any, version: int, batches_done: int) -> None:
    """A piece of parameters, buffers and optimizer state, none of which is replaced."""
    with draft_piece(path, *state, version=version, batches_done=batches_done) as draft:
        draft.finish()
