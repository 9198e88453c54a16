"""Seccomp: system calls that this process may no longer make; irrevocable, for all its threads.

The filter is a program of the classic Berkeley packet filter that the kernel runs before each call. It is
assembled from two lists: calls refused with an error, and conditions on a call's argument. A refused call
returns an error and does not kill, so that a library which merely tried goes on without. Calls newer than
the table of numbers do not exist for this process.

Source: kernel documentation, userspace-api/seccomp_filter; `linux/bpf_common.h`, `linux/audit.h`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ravnest_p2p.daemon.worker.sandbox_syscalls import (
    NEWEST,
    UnavailableError,
    call,
    forbid_new_privileges,
    numbers,
    require_linux,
)

LOAD, AND, RETURN = 0x20, 0x54, 0x06
JUMP, IF_EQUAL, IF_GREATER = 0x05, 0x15, 0x25
ALLOW, KILL_PROCESS, ERROR = 0x7FFF0000, 0x80000000, 0x00050000
NUMBER_AT, MACHINE_AT, ARGUMENTS_AT = 0, 4, 16
AUDIT_MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
SET_MODE_FILTER = 1
ALL_THREADS = 1 << 0
ALL_BITS = 0xFFFFFFFF
INSTRUCTION = struct.Struct("HBBI")


class Condition(NamedTuple):
    """A call is refused unless an argument, under `mask`, is one of `values`.

    Attributes:
        word: 0 for the argument's low 32 bits, 1 for the high ones.
        refuse: True turns it round: refused if it is one of them.
    """

    call: str
    argument: int
    values: tuple[int, ...]
    mask: int = ALL_BITS
    word: int = 0
    refuse: bool = False


def program(machine: str, refused: Mapping[str, int], conditions: Iterable[Condition]) -> bytes:
    """The filter's instructions for a machine.

    Args:
        refused: error number by call; calls that the machine lacks are passed over.
    Raises:
        UnavailableError: calls of such a machine are not known.
    """
    known = numbers(machine)
    code = [
        (LOAD, 0, 0, MACHINE_AT),
        # Another machine's numbers (32-bit programs) mean other calls.
        (IF_EQUAL, 1, 0, AUDIT_MACHINES[machine]),
        (RETURN, 0, 0, KILL_PROCESS),
        (LOAD, 0, 0, NUMBER_AT),
        (IF_GREATER, 0, 1, NEWEST),
        (RETURN, 0, 0, ERROR | errno.ENOSYS),
    ]
    for name, error in refused.items():
        if name in known:
            code += [(IF_EQUAL, 0, 1, known[name]), (RETURN, 0, 0, ERROR | error)]
    for condition in conditions:
        if condition.call in known:
            code += _check(condition, known[condition.call])
    code.append((RETURN, 0, 0, ALLOW))
    return b"".join(INSTRUCTION.pack(*instruction) for instruction in code)


def install(refused: Mapping[str, int], conditions: Iterable[Condition]) -> None:
    """Put the filter before every further call of every thread of this process.

    Raises:
        UnavailableError: the kernel filters no calls, or the processor's calls are not known.
        OSError: the kernel refuses.
    """
    require_linux()
    code = program(os.uname().machine, refused, conditions)
    instructions = ctypes.create_string_buffer(code, len(code))
    filter_ = _Filter(len(code) // INSTRUCTION.size, ctypes.addressof(instructions))
    forbid_new_privileges()
    try:
        stray = call("seccomp", SET_MODE_FILTER, ALL_THREADS, ctypes.byref(filter_))
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EINVAL):
            raise UnavailableError(f"no seccomp filters in this kernel ({error.strerror})") from error
        raise
    if stray:
        raise OSError(errno.EACCES, f"thread {stray} has a filter of its own")


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def _check(condition: Condition, number: int) -> list[tuple[int, int, int, int]]:
    """Passed over by other calls; ends with the call's number loaded again, for what follows."""
    count = len(condition.values)
    # From the i-th comparison to the instruction after the next one behind the last comparison.
    matches = [(IF_EQUAL, count - i, 0, value) for i, value in enumerate(condition.values)]
    refusal = (RETURN, 0, 0, ERROR | errno.EPERM)
    body = [
        (LOAD, 0, 0, ARGUMENTS_AT + 8 * condition.argument + 4 * condition.word),
        (AND, 0, 0, condition.mask),
        *matches,
        *([(JUMP, 0, 0, 1), refusal] if condition.refuse else [refusal]),
        (LOAD, 0, 0, NUMBER_AT),
    ]
    return [(IF_EQUAL, 0, len(body), number), *body]
