"""The second wall around a stranger's graph: what the worker does not need is taken from it, for good.

Problem: the package loader lets only known operations through, but one faulty kernel of theirs, and the
stranger's numbers become machine code with all rights of the peer's owner. Solution, in two steps between the
worker's imports and the first byte that it receives: Landlock leaves it its code, the blobs and its job's
folder, and nothing of the owner's files (`confine_files`); seccomp leaves it no network, no other program and
no other process (`confine_calls`). Connections to p2pd come through a door (`sandbox_door`). `sandbox_rules`
says it all as data.

A wall that the system does not have is missing with a word in the worker's log: macOS has neither, linux
before 5.13 no Landlock. Threads that ran before `confine_files` stay outside on kernels before 7.0. To a
worker on a GPU the device files of GPUs are left open, and their driver starts before `confine_calls`, for at
its start it makes calls that it does without later.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ravnest_p2p.daemon.worker import sandbox_landlock, sandbox_rules, sandbox_seccomp
from ravnest_p2p.daemon.worker.sandbox_rules import Rooms
from ravnest_p2p.daemon.worker.sandbox_syscalls import UnavailableError

__all__ = ["Rooms", "confine_calls", "confine_files"]


def confine_files(rooms: Rooms, programs: Sequence[Path] = (), driving: bool = False) -> str:
    """Give up all files but the granted ones; returns what was done, in words.

    Args:
        programs: those of a compiler that may be started; the children stay behind the same walls.
        driving: this process may compute on a GPU.
    Raises:
        OSError: the kernel has the wall and does not put it up.
    """
    try:
        abi = sandbox_landlock.offered()
    except UnavailableError as error:
        return f"files open ({error})"
    threads = len(os.listdir("/proc/self/task"))
    sandbox_landlock.restrict(sandbox_rules.grants(rooms, programs, driving), abi)
    done = f"files by Landlock {abi}"
    if threads > 1 and abi < sandbox_landlock.ABI_OF_ALL_THREADS:
        done += f", except for {threads - 1} threads that ran before"
    return done


def confine_calls(compiling: bool = False, driving: bool = False) -> str:
    """Give up the system calls that lead out of the process; returns what was done, in words.

    Args:
        compiling, driving: as of `sandbox_rules.conditions`.
    Raises:
        OSError: the kernel has the wall and does not put it up.
    """
    try:
        conditions = sandbox_rules.conditions(os.getpid(), compiling, driving)
        sandbox_seccomp.install(sandbox_rules.refused(compiling), conditions)
    except UnavailableError as error:
        return f"system calls open ({error})"
    return "system calls by seccomp" + (", less those to start a compiler" if compiling else "")
