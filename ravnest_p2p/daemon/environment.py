"""The environment that children of ravnestd get."""

from __future__ import annotations

import os

KEPT_BYTES = 2**30
"""Freed memory that glibc keeps for the next micro-batch, which needs as much again. By itself it gives back
all but a few MB each time, and the kernel's clearing of the pages anew is 1–2 % of a stage's time."""


def thread_environment(threads: int) -> dict[str, str]:
    """This process's environment, with what torch and glibc read at their start.

    The owner's own settings of glibc come first; the number of threads is ravnestd's to set.
    """
    return {
        "MALLOC_MMAP_THRESHOLD_": str(KEPT_BYTES),
        "MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES),
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "PYTHONUNBUFFERED": "1",
    }
