"""Landlock: files, devices and signals that this process may still reach; irrevocable.

Everything is refused that the kernel's version of Landlock knows to refuse and no grant allows. Each version
(ABI) brought further accesses; older kernels get as much as theirs has.

Source: kernel documentation, userspace-api/landlock.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable
from enum import IntFlag
from pathlib import Path
from typing import NamedTuple

from ravnest_p2p.daemon.worker.sandbox_syscalls import (
    UnavailableError,
    call,
    forbid_new_privileges,
    require_linux,
)


class Access(IntFlag):
    """What can be done to a file, or in a folder."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15
    RESOLVE_UNIX = 1 << 16


OF_FILES = (
    Access.EXECUTE
    | Access.WRITE_FILE
    | Access.READ_FILE
    | Access.TRUNCATE
    | Access.IOCTL_DEV
    | Access.RESOLVE_UNIX
)
"""What makes sense for a grant that names a file; the kernel refuses others there."""


class Version(NamedTuple):
    """What an ABI can refuse, as bits of `struct landlock_ruleset_attr`."""

    abi: int
    files: int
    net: int
    scoped: int


BIND_AND_CONNECT_TCP = 0b11
ABSTRACT_SOCKETS_AND_SIGNALS = 0b11
VERSIONS = (
    Version(1, (1 << 13) - 1, 0, 0),
    Version(2, (1 << 14) - 1, 0, 0),
    Version(3, (1 << 15) - 1, 0, 0),
    Version(4, (1 << 15) - 1, BIND_AND_CONNECT_TCP, 0),
    Version(5, (1 << 16) - 1, BIND_AND_CONNECT_TCP, 0),
    Version(6, (1 << 16) - 1, BIND_AND_CONNECT_TCP, ABSTRACT_SOCKETS_AND_SIGNALS),
    Version(9, (1 << 17) - 1, BIND_AND_CONNECT_TCP, ABSTRACT_SOCKETS_AND_SIGNALS),
)
ABI_OF_ALL_THREADS = 8
CREATE_RULESET_VERSION = 1 << 0
RULE_PATH_BENEATH = 1
RESTRICT_ALL_THREADS = 1 << 3


class Grant(NamedTuple):
    """An access to what lies at or under each of the paths; paths that do not exist are passed over."""

    access: Access
    paths: tuple[Path, ...]


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("access", ctypes.c_uint64), ("folder", ctypes.c_int32))


def offered() -> int:
    """The kernel's Landlock ABI.

    Raises:
        UnavailableError: it has none, or keeps it to itself.
    """
    require_linux()
    try:
        return call("landlock_create_ruleset", None, 0, CREATE_RULESET_VERSION)
    except OSError as error:
        raise UnavailableError(f"no Landlock in this kernel ({error.strerror})") from error


def restrict(grants: Iterable[Grant], abi: int) -> None:
    """Give up every access but the grants, for this thread and those that it starts.

    From ABI 8 on, threads that run already are restricted as well; before, start none.

    Raises:
        OSError: the kernel refuses.
    """
    version = next(version for version in reversed(VERSIONS) if version.abi <= abi)
    attributes = _Ruleset(version.files, version.net, version.scoped)
    ruleset = call(
        "landlock_create_ruleset", ctypes.byref(attributes), ctypes.c_size_t(ctypes.sizeof(attributes)), 0
    )
    try:
        for grant in grants:
            for path in grant.paths:
                _add(ruleset, path, grant.access & version.files)
        forbid_new_privileges()
        call("landlock_restrict_self", ruleset, RESTRICT_ALL_THREADS if abi >= ABI_OF_ALL_THREADS else 0)
    finally:
        os.close(ruleset)


def _add(ruleset: int, path: Path, access: int) -> None:
    """Grant; the path stays open, for what proc forgets and makes anew would no longer be the granted one."""
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    if not stat.S_ISDIR(os.fstat(opened).st_mode):
        access &= OF_FILES
    rule = _PathBeneath(access, opened)
    call("landlock_add_rule", ruleset, RULE_PATH_BENEATH, ctypes.byref(rule), 0)
