"""The environment that children of ravnestd get."""

from __future__ import annotations

import os


def thread_environment(threads: int) -> dict[str, str]:
    """This process's environment, with torch's thread count set before torch is loaded."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "PYTHONUNBUFFERED": "1",
    }
