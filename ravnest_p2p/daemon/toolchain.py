"""What of this computer a worker needs to compile: the C++ compiler's programs, and the bounds on them.

Problem: behind its walls a worker can start no program. Where the owner lets it compile, it should be able to
start the compiler and nothing else, and what it starts has to be counted and ended with it. Solution: the
compiler itself says which programs it is made of; they alone become executable to the worker. A worker that
compiles leads a process group that neither it nor its children can leave.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from glob import glob
from pathlib import Path

import psutil

COMPILER, PARTS = "g++", ("cc1plus", "collect2", "as", "ld")
LOADERS = ("/lib/ld-linux*", "/lib64/ld-linux*")
ASK_S = 10.0
MEMORY_BYTES = 1024**3
"""For the code generator and the compiler, beside what is lent to training."""
MOST_PROGRAMS, MOST_S = 12, 120.0
"""That a worker may have running at once, and how long each may take, in seconds."""


def toolchain() -> tuple[Path, ...]:
    """The compiler, then all else that is started; empty where a part is missing.

    That is the compiler's parts, the loader of programs, and Python, in which TorchInductor tries the
    processor's vector instructions before it uses them.
    """
    compiler = shutil.which(COMPILER)
    if compiler is None:
        return ()
    found = [compiler]
    for part in PARTS:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            command = [compiler, f"-print-prog-name={part}"]
            named = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S, check=False)
            program = shutil.which(named.stdout.strip())
            if program is not None:
                found.append(program)
    if len(found) != 1 + len(PARTS):
        return ()
    loaders = [path for pattern in LOADERS for path in glob(pattern)]
    return tuple(map(Path, (*found, sys.executable, *loaders)))


def children(leader: int) -> Iterator[psutil.Process]:
    """All other processes of the group that a worker leads."""
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError):
            if process.pid != leader and os.getpgid(process.pid) == leader:
                yield process


def resident_bytes(leader: int) -> tuple[int, int]:
    """What the children of a worker take, and their number; those that take too long are killed."""
    taken = number = 0
    for child in children(leader):
        with contextlib.suppress(psutil.Error):
            number += 1
            taken += child.memory_info().rss
            if time.time() - child.create_time() > MOST_S:
                child.kill()
    return taken, number


def end_group(leader: int) -> None:
    """Kill a worker, if it is still there, and all that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
