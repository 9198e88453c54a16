"""The limits of a worker: it dies with its parent, keeps to its memory and disk, and has no privileges.

Problem: a worker executes a graph that a stranger sent, on a computer that its owner uses. Solution: the
kernel kills the worker when ravnestd dies (linux); memory and files are capped, and the worker itself cannot
raise the caps; core dumps, which would write tensors to disk, are off; the rights of a superuser, as
in most containers, are given up; the worker yields to the owner's own work. The walls are in `sandbox`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys

from ravnest_p2p.daemon.worker.sandbox_syscalls import UnavailableError, call

PR_SET_PDEATHSIG = 1
CAPABILITIES_VERSION = 0x20080522
ANY_FILE_BY_MODE = 1 << 1
"""CAP_DAC_OVERRIDE: in a container, the peer's folder may belong to somebody else; Landlock still holds."""
DATA_OVERHEAD_BYTES = 4 * 1024**3
"""Writable memory of its own (`VmData`) that a worker may have beside what is lent, used or not.
Measured: idle 0.27 GB, with torch for CUDA 0.83 GB; with 64 threads of torch and 64 others, for their stacks
and arenas, 1.8 and 2.4 GB. What compiling takes, 1 GiB, comes on top."""
ADDRESS_SPACE_OVERHEAD_BYTES = 12 * 1024**3
"""What an idle torch process maps (not uses) where only address space can be capped."""


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent dies; elsewhere the channel's end-of-file does it."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def exit_if_orphan(parent: int) -> None:
    """End at once if the parent died before `die_with_parent` could take effect."""
    if os.getppid() != parent:
        os._exit(1)


def give_up_privileges() -> None:
    """Keep one capability of a superuser's at most; ordinary users have none."""
    header = (ctypes.c_uint32 * 2)(CAPABILITIES_VERSION, 0)
    # Effective, permitted, inheritable: the low 32 capabilities, then the high ones.
    sets = (ctypes.c_uint32 * 6)()
    with contextlib.suppress(UnavailableError):
        call("capget", ctypes.byref(header), ctypes.byref(sets))
        kept = sets[1] & ANY_FILE_BY_MODE
        sets[:] = [kept, kept, 0, 0, 0, 0]
        call("capset", ctypes.byref(header), ctypes.byref(sets))


def limit_resources(memory_bytes: int | None, file_bytes: int) -> None:
    """Cap memory at the peer's limit plus what torch itself takes; no core files; low priority.

    On linux, memory is what the process can write and shares with nobody: the cap on address space would
    count what is only reserved, which with torch for CUDA is many GB more on many cores.

    Args:
        memory_bytes: None sets no cap: a GPU's driver maps many times what it uses.
        file_bytes: of one file; what the peer could not store, the worker need not write.
    """
    if memory_bytes is not None:
        if sys.platform.startswith("linux"):
            _cap(resource.RLIMIT_DATA, memory_bytes + DATA_OVERHEAD_BYTES)
        else:
            _cap(resource.RLIMIT_AS, memory_bytes + ADDRESS_SPACE_OVERHEAD_BYTES)
    _cap(resource.RLIMIT_FSIZE, file_bytes)
    _cap(resource.RLIMIT_CORE, 0)
    os.nice(5)


def _cap(limit: int, value: int) -> None:
    _, hard = resource.getrlimit(limit)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))
