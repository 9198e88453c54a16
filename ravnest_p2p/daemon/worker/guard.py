"""The walls around a worker: it dies with its parent, keeps to its memory, and opens no privileged door.

Problem: a worker executes a graph that a stranger sent. The package loader is the first wall; this is the
second. Solution: the kernel kills the worker when ravnestd dies (linux), address space is capped, core dumps
(which would write tensors to disk) and new privileges are off, and the worker yields to the owner's own work.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38
ADDRESS_SPACE_OVERHEAD_BYTES = 12 * 1024**3
"""What an idle torch process maps (not uses) beside its tensors: libraries, thread stacks, arenas."""


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent dies; elsewhere the channel's end-of-file does it."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def exit_if_orphan(parent: int) -> None:
    """End at once if the parent died before `die_with_parent` could take effect."""
    if os.getppid() != parent:
        os._exit(1)


def limit_resources(memory_bytes: int) -> None:
    """Cap the address space at the peer's limit plus torch's own mappings; no core files; low priority.

    Args:
        memory_bytes: 0 sets no cap: a GPU's driver maps many times what it uses.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if memory_bytes:
        cap = memory_bytes + ADDRESS_SPACE_OVERHEAD_BYTES
        cap = cap if hard == resource.RLIM_INFINITY else min(cap, hard)
        resource.setrlimit(resource.RLIMIT_AS, (cap, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(5)


def peak_memory_bytes() -> int:
    """Resident peak of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
