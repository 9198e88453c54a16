"""What a worker may do, as data: files it may touch, system calls it may not make.

The lists name what torch, Python and p2pd's client were seen to need and the ways out of a process that linux
has. A file right that is missing here ends in a clear `PermissionError` in the worker's log; a way out that
is missing here is a hole. So grants are few, refusals many.
"""

from __future__ import annotations

import errno
import os
import site
import socket
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import NamedTuple

import ravnest_p2p
from ravnest_p2p.daemon.worker.sandbox_landlock import Access, Grant
from ravnest_p2p.daemon.worker.sandbox_seccomp import Condition


class Rooms(NamedTuple):
    """Folders of one worker.

    Attributes:
        blobs: the peer's blob store; read.
        job: pieces and traces of the worker's job; read and written.
        sockets: where p2pd finds this worker's own sockets.
    """

    blobs: Path
    job: Path
    sockets: Path

    @property
    def compiled(self) -> Path:
        """In the job's folder: what a worker's compiler writes; gone with the worker."""
        return self.job / "compiled"


READ = Access.READ_FILE | Access.READ_DIR
FOLDERS = Access.MAKE_DIR | Access.REMOVE_DIR
WRITE = READ | Access.WRITE_FILE | Access.TRUNCATE | Access.MAKE_REG | Access.REMOVE_FILE | FOLDERS
"""Torch keeps caches in a folder among the temporary files; links and pipes are for nothing good."""
SERVE = Access.MAKE_SOCK | Access.REMOVE_FILE
DRIVE = READ | Access.WRITE_FILE | Access.IOCTL_DEV

LIBRARIES = (
    "/lib /lib32 /lib64 /usr/lib /usr/lib32 /usr/lib64 /usr/local/lib /usr/local/cuda /usr/local/nvidia "
    "/usr/lib64-nvidia /run/opengl-driver /opt/rocm /nix/store /gnu/store /etc/ld.so.cache /etc/localtime "
    "/usr/share/zoneinfo"
)
ABOUT_THE_COMPUTER = "/proc/self /proc/cpuinfo /proc/meminfo /proc/stat /sys/devices/system"
HEADERS = "/usr/include /usr/local/include"
RANDOM_AND_ZERO = "/dev/urandom /dev/random /dev/zero"
GPU_DEVICES = "/dev/nvidia* /dev/dxg /dev/dri /dev/kfd"
ABOUT_GPUS = "/sys /proc/driver /proc/devices"
OWN_THREADS = "/proc/self/task"
"""NVIDIA's driver writes its threads' names there, and from 570 on does not start where it may not. What else
can be written there is of this process alone."""

ENVIRONMENT = (
    "PATH HOME USER LOGNAME LANG LC_ TZ PYTHON VIRTUAL_ENV CONDA_PREFIX LD_ DYLD_ OMP_ MKL_ KMP_ GOMP_ "
    "OPENBLAS_ TORCH PYTORCH_ CUDA_ CUBLAS_ NVIDIA_ HIP_ HSA_ ROCR_ ROCM_ MALLOC_"
)
"""Beginnings of the names that a worker's environment keeps; tokens and passwords of the owner stay out."""
COMPILE_ALONE = {
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "TORCHINDUCTOR_VEC_ISA_OK": "1",
    "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0",
}
"""Without a pool of processes, with few trials of the processor, and without `openssl`."""


def grants(rooms: Rooms, programs: Sequence[Path] = (), driving: bool = False) -> tuple[Grant, ...]:
    """Everything of the file system that a worker gets.

    Args:
        programs: a compiler's, if it may compile: they are executable, and what they include is readable.
        driving: it may compute on a GPU.
    """
    gpus = [path for pattern in GPU_DEVICES.split() for path in glob(pattern)] if driving else []
    return (
        Grant(READ, (*_code(rooms), *_paths(LIBRARIES), *_paths(ABOUT_THE_COMPUTER))),
        Grant(Access.READ_FILE, _paths(RANDOM_AND_ZERO)),
        Grant(Access.READ_FILE | Access.WRITE_FILE, _paths("/dev/null")),
        Grant(DRIVE, tuple(map(Path, gpus))),
        Grant(READ, _paths(ABOUT_GPUS) if gpus else ()),
        Grant(Access.WRITE_FILE | Access.TRUNCATE, _paths(OWN_THREADS) if gpus else ()),
        Grant(READ, (rooms.blobs,)),
        Grant(WRITE, (rooms.job,)),
        Grant(SERVE, (rooms.sockets,)),
        Grant(READ | Access.EXECUTE, tuple(programs)),
        Grant(READ, (*_paths(HEADERS), Path(sysconfig.get_path("include"))) if programs else ()),
    )


def _code(rooms: Rooms) -> list[Path]:
    """Folders with Python and packages, less those in which somebody's home lies, such as a repository's root
    in `PYTHONPATH`."""
    prefixes = [Path(prefix) / "lib" for prefix in (sys.prefix, sys.base_prefix)]
    named = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    if site.ENABLE_USER_SITE:
        named.append(site.getusersitepackages())
    for variable in ("PYTHONPATH", "LD_LIBRARY_PATH"):
        named += [entry for entry in os.environ.get(variable, "").split(":") if os.path.isabs(entry)]
    homes = (Path(os.path.expanduser("~")).resolve(), rooms.job.resolve())
    found = [*prefixes, *map(Path, named), *map(Path, ravnest_p2p.__path__)]
    return [path for path in found if not any(home.is_relative_to(path.resolve()) for home in homes)]


def _paths(text: str) -> tuple[Path, ...]:
    return tuple(map(Path, text.split()))


WAYS_OUT = {
    "other programs": "execve execveat fork vfork",
    "other processes": (
        "ptrace process_vm_readv process_vm_writev process_madvise process_mrelease kcmp pidfd_getfd "
        "pidfd_send_signal tkill rt_sigqueueinfo rt_tgsigqueueinfo migrate_pages move_pages setpriority "
        "ioprio_set sched_setscheduler sched_setparam sched_setattr"
    ),
    "connections, but those that ravnestd hands over": "connect",
    "what Landlock does not see": (
        "chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat setxattr lsetxattr fsetxattr "
        "setxattrat removexattr lremovexattr fremovexattr removexattrat file_setattr utime utimes futimesat "
        "utimensat truncate inotify_init inotify_init1 inotify_add_watch fanotify_init open_by_handle_at "
        "mq_open mq_unlink"
    ),
    "other views of the file system": (
        "mount umount2 pivot_root chroot fsopen fsconfig fsmount fspick move_mount mount_setattr open_tree "
        "open_tree_attr unshare setns swapon swapoff quotactl quotactl_fd acct mknod mknodat"
    ),
    "memory that the limit does not count, or that others share": (
        "memfd_create memfd_secret shmget shmat shmctl semget semop semtimedop semctl msgget msgsnd msgrcv "
        "msgctl"
    ),
    "its group, by which what it starts is ended": "setsid setpgid",
    "limits": "setrlimit",
    "much-attacked parts of the kernel": (
        "bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register keyctl add_key "
        "request_key modify_ldt personality"
    ),
    "the computer itself": (
        "kexec_load kexec_file_load init_module finit_module delete_module reboot syslog iopl ioperm vhangup "
        "settimeofday clock_settime clock_adjtime adjtimex sethostname setdomainname"
    ),
}
# The C library then starts threads by `clone`, whose flags a filter can see.
UNKNOWN_CALLS = ("clone3",)

FOR_COMPILERS = frozenset(("execve", "fork", "vfork"))
"""Refusals that a worker which compiles is spared; files decide which programs it can start."""

SHARED_BY_NO_FILE, GROWING_DOWN = 0x21, 0x100
"""Flags of `mmap` for memory that the limit does not count."""
NEW_THREAD = 0x00010000
NEW_SPACES_OR_SIBLINGS = 0x7E028000
"""Flags of `clone` for namespaces, and for a process that counts as started by the parent."""
SOCKET_KIND = 0xF
FAST_OPEN = 0x20000000
"""Flag by which what is sent connects a TCP socket."""
SET_OWNER, SET_SIGNAL, SET_OWNER_EX = 8, 10, 15
TERMINAL_INPUT, TERMINAL_SELECTION, SOCKET_OWNER, SOCKET_GROUP = 0x5412, 0x541C, 0x8901, 0x8902


def refused(compiling: bool = False) -> dict[str, int]:
    """Error number by system call.

    Args:
        compiling: the worker may start a compiler.
    """
    names = {call for calls in WAYS_OUT.values() for call in calls.split()}
    names -= FOR_COMPILERS if compiling else frozenset()
    return dict.fromkeys(sorted(names), errno.EPERM) | dict.fromkeys(UNKNOWN_CALLS, errno.ENOSYS)


def conditions(pid: int, compiling: bool = False, driving: bool = False) -> tuple[Condition, ...]:
    """Calls that are refused for some arguments; `pid` is this process, the only one it may signal.

    Args:
        compiling: as of `refused`.
        driving: the worker computes on a GPU, and its memory is not limited.
    """
    uncounted = (
        Condition("mmap", 3, (SHARED_BY_NO_FILE,), mask=SHARED_BY_NO_FILE, refuse=True),
        Condition("mmap", 3, (GROWING_DOWN,), mask=GROWING_DOWN, refuse=True),
    )
    streams = (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)
    only_threads = Condition("clone", 0, (NEW_THREAD,), mask=NEW_THREAD)
    in_its_place = Condition("clone", 0, (0,), mask=NEW_SPACES_OR_SIBLINGS)
    return (
        *(() if driving else uncounted),
        in_its_place if compiling else only_threads,
        Condition("kill", 0, (pid,)),
        Condition("tgkill", 0, (pid,)),
        # Reading limits goes through the same call as setting them.
        Condition("prlimit64", 2, (0,)),
        Condition("prlimit64", 2, (0,), word=1),
        Condition("socket", 0, (socket.AF_UNIX,)),
        Condition("socketpair", 0, (socket.AF_UNIX,)),
        # Datagrams carry their address with them, past `connect`.
        Condition("socket", 1, streams, mask=SOCKET_KIND),
        Condition("socketpair", 1, streams, mask=SOCKET_KIND),
        # So may the first bytes of a TCP socket that is connected to nobody, such as a shut listening one.
        *(
            Condition(call, flags, (FAST_OPEN,), mask=FAST_OPEN, refuse=True)
            for call, flags in (("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3))
        ),
        # Have the kernel send a signal of one's choice to a process of one's choice.
        Condition("fcntl", 1, (SET_OWNER, SET_SIGNAL, SET_OWNER_EX), refuse=True),
        Condition("ioctl", 1, (TERMINAL_INPUT, TERMINAL_SELECTION, SOCKET_OWNER, SOCKET_GROUP), refuse=True),
    )


def environment(
    of: Mapping[str, str], rooms: Rooms, programs: Sequence[Path] = (), driving: bool = False
) -> dict[str, str]:
    """The variables that a worker gets of those of ravnestd.

    Temporary files go into the job's folder, and so does torch's cache, for whose place older torch (2.11)
    looks up the user's name, which a worker may not. numpy's BLAS starts no threads: it would when it is
    loaded, before files are confined, which older kernels do for the calling thread only; torch has its own.
    One that does not compute on a GPU sees none, or torch starts the driver in its first backward pass.
    """
    beginnings = tuple(ENVIRONMENT.split())
    kept = {name: value for name, value in of.items() if name.startswith(beginnings)}
    if programs:
        kept |= {"CXX": str(programs[0]), **COMPILE_ALONE}
    kept |= {"CUDA_CACHE_PATH": str(rooms.compiled)} if driving else {"CUDA_VISIBLE_DEVICES": ""}
    kept |= {"TORCHINDUCTOR_CACHE_DIR": str(rooms.compiled)}
    return kept | {"TMPDIR": str(rooms.job), "OPENBLAS_NUM_THREADS": "1"}
