"""Where compiled functions are kept from one process to the next.

Problem: numba looks at a function's own file to see whether it changed, not at those of the functions that
it calls, and keeps what it compiled beside the code, where an installed package may not write. Solution: a
folder of the user's for each version of these sources.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import numba

NAME = "NUMBA_CACHE_DIR"


def keep_compiled() -> None:
    """Choose the folder; a temporary one where the user's cannot be written. `NUMBA_CACHE_DIR` goes first."""
    if NAME in os.environ:
        return
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "ravnest_p2p" / f"compiled-{digest.hexdigest()[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="ravnest-compiled-"))
    numba.config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]
