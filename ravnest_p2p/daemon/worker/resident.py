"""How much memory this process has taken at most."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys

import psutil


class ResidentPeak:
    """The most that this process was resident since the object was made.

    The kernel only tells the peak since the start of the process, which may have run another stage before:
    that one counts once it has grown, and until then what is resident whenever it is asked for.
    """

    def __init__(self) -> None:
        _give_back()
        self._process = psutil.Process()
        self._before = _process_peak_bytes()
        self._peak: int = self._process.memory_info().rss

    def bytes(self) -> int:
        """The peak so far."""
        since_start = _process_peak_bytes()
        now = since_start if since_start > self._before else self._process.memory_info().rss
        self._peak = max(self._peak, now)
        return self._peak


def _give_back() -> None:
    """Let the kernel have what glibc keeps for more of the same (`daemon.environment`): it was another's."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _process_peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
