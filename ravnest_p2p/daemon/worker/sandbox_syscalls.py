"""System calls by name: their numbers, in one place, and how to make those that Python has no function for.

Numbers are of the two machines for which p2pd is shipped; a dash where the machine lacks the call, which then
needs no refusal either. `NEWEST` is the highest number that was known when the table was written.
"""

from __future__ import annotations

import ctypes
import os
import sys

TABLE = """
                         x86_64 aarch64
    acct                    163      89
    add_key                 248     217
    adjtimex                159     171
    bpf                     321     280
    capget                  125      90
    capset                  126      91
    chmod                    90       -
    chown                    92       -
    chroot                  161      51
    clock_adjtime           305     266
    clock_settime           227     112
    clone                    56     220
    clone3                  435     435
    connect                  42     203
    delete_module           176     106
    execve                   59     221
    execveat                322     281
    fanotify_init           300     262
    fchmod                   91      52
    fchmodat                268      53
    fchmodat2               452     452
    fchown                   93      55
    fchownat                260      54
    fcntl                    72      25
    file_setattr            469     469
    finit_module            313     273
    fork                     57       -
    fremovexattr            199      16
    fsconfig                431     431
    fsetxattr               190       7
    fsmount                 432     432
    fsopen                  430     430
    fspick                  433     433
    futimesat               261       -
    init_module             175     105
    inotify_add_watch       254      27
    inotify_init            253       -
    inotify_init1           294      26
    io_uring_enter          426     426
    io_uring_register       427     427
    io_uring_setup          425     425
    ioctl                    16      29
    ioperm                  173       -
    iopl                    172       -
    ioprio_set              251      30
    kcmp                    312     272
    kexec_file_load         320     294
    kexec_load              246     104
    keyctl                  250     219
    kill                     62     129
    landlock_add_rule       445     445
    landlock_create_ruleset 444     444
    landlock_restrict_self  446     446
    lchown                   94       -
    lremovexattr            198      15
    lsetxattr               189       6
    memfd_create            319     279
    memfd_secret            447     447
    migrate_pages           256     238
    mknod                   133       -
    mknodat                 259      33
    mmap                      9     222
    modify_ldt              154       -
    mount                   165      40
    mount_setattr           442     442
    move_mount              429     429
    move_pages              279     239
    mq_open                 240     180
    mq_unlink               241     181
    msgctl                   71     187
    msgget                   68     186
    msgrcv                   70     188
    msgsnd                   69     189
    open_by_handle_at       304     265
    open_tree               428     428
    open_tree_attr          467     467
    perf_event_open         298     241
    personality             135      92
    pidfd_getfd             438     438
    pidfd_send_signal       424     424
    pivot_root              155      41
    prlimit64               302     261
    process_madvise         440     440
    process_mrelease        448     448
    process_vm_readv        310     270
    process_vm_writev       311     271
    ptrace                  101     117
    quotactl                179      60
    quotactl_fd             443     443
    reboot                  169     142
    removexattr             197      14
    removexattrat           466     466
    request_key             249     218
    rt_sigqueueinfo         129     138
    rt_tgsigqueueinfo       297     240
    sched_setattr           314     274
    sched_setparam          142     118
    sched_setscheduler      144     119
    seccomp                 317     277
    semctl                   66     191
    semget                   64     190
    semop                    65     193
    semtimedop              220     192
    sendmmsg                307     269
    sendmsg                  46     211
    sendto                   44     206
    setdomainname           171     162
    sethostname             170     161
    setns                   308     268
    setpgid                 109     154
    setpriority             141     140
    setrlimit               160     164
    setsid                  112     157
    settimeofday            164     170
    setxattr                188       5
    setxattrat              463     463
    shmat                    30     196
    shmctl                   31     195
    shmget                   29     194
    socket                   41     198
    socketpair               53     199
    swapoff                 168     225
    swapon                  167     224
    syslog                  103     116
    tgkill                  234     131
    tkill                   200     130
    truncate                 76      45
    umount2                 166      39
    unshare                 272      97
    userfaultfd             323     282
    utime                   132       -
    utimensat               280      88
    utimes                  235       -
    vfork                    58       -
    vhangup                 153      58
"""
NEWEST = 469
MACHINES, *_ROWS = (line.split() for line in TABLE.strip().splitlines())
PR_SET_NO_NEW_PRIVS = 38


class UnavailableError(Exception):
    """This system does not offer the wall; the message says what is missing."""


def numbers(machine: str) -> dict[str, int]:
    """Numbers of the table's calls.

    Raises:
        UnavailableError: the table has no column for the machine.
    """
    if machine not in MACHINES:
        raise UnavailableError(f"none known for {machine} processors")
    column = MACHINES.index(machine) + 1
    return {row[0]: int(row[column]) for row in _ROWS if row[column] != "-"}


def require_linux() -> None:
    """Raises:
    UnavailableError: another system.
    """
    if sys.platform != "linux":
        raise UnavailableError(f"none on {sys.platform}")


def call(name: str, *arguments: object) -> int:
    """Make a system call with integers and ctypes values, structures by reference.

    Raises:
        OSError: the kernel refuses.
        UnavailableError: not a linux whose numbers are known.
    """
    require_linux()
    number = numbers(os.uname().machine)[name]
    values = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result: int = ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *values)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def forbid_new_privileges() -> None:
    """No program that this process could start gains rights; both walls demand it of ordinary users."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
