"""The lists of the sandbox name what exists, and the filter made of them decides so on both machines."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from ravnest_p2p.daemon.worker import sandbox, sandbox_landlock, sandbox_rules, sandbox_seccomp
from ravnest_p2p.daemon.worker.sandbox_rules import Rooms, conditions, environment, grants, refused
from ravnest_p2p.daemon.worker.sandbox_seccomp import ALLOW, AUDIT_MACHINES, ERROR, INSTRUCTION, KILL_PROCESS
from ravnest_p2p.daemon.worker.sandbox_syscalls import MACHINES, NEWEST, UnavailableError, numbers

PID = 4711
PARENT = 4242
OPENAT = {"x86_64": 257, "aarch64": 56}


def run(program: bytes, number: int, arguments: tuple[int, ...] = (), machine: int = 0) -> int:
    """The kernel's verdict on a call: an interpreter of the few instructions that a filter uses."""
    words = [number, machine, 0, 0]
    for argument in (*arguments, *([0] * (6 - len(arguments)))):
        words += [argument & 0xFFFFFFFF, argument >> 32 & 0xFFFFFFFF]
    code = list(INSTRUCTION.iter_unpack(program))
    at = accumulator = 0
    while True:
        operation, if_true, if_false, value = code[at]
        at += 1
        match operation:
            case 0x20:
                accumulator = words[value // 4]
            case 0x54:
                accumulator &= value
            case 0x05:
                at += value
            case 0x15:
                at += if_true if accumulator == value else if_false
            case 0x25:
                at += if_true if accumulator > value else if_false
            case 0x06:
                return value


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def verdict(machine: str, name: str | int, *arguments: int) -> int:
    program = sandbox_seccomp.program(machine, refused(), conditions(PID))
    number = name if isinstance(name, int) else numbers(machine)[name]
    return run(program, number, arguments, AUDIT_MACHINES[machine])


REFUSED = ERROR | errno.EPERM
STREAM = socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("socket", (socket.AF_UNIX, STREAM), ALLOW),
        ("socket", (socket.AF_UNIX, socket.SOCK_DGRAM), REFUSED),
        ("socket", (socket.AF_INET, STREAM), REFUSED),
        ("socket", (socket.AF_INET6, STREAM), REFUSED),
        ("socket", (1 << 32 | socket.AF_INET, STREAM), REFUSED),
        ("socketpair", (socket.AF_UNIX, STREAM), ALLOW),
        ("socketpair", (socket.AF_UNIX, socket.SOCK_DGRAM), REFUSED),
        ("clone", (0x3D0F00,), ALLOW),
        ("clone", (17,), REFUSED),
        ("clone3", (), ERROR | errno.ENOSYS),
        ("kill", (PID, 9), ALLOW),
        ("kill", (PARENT, 9), REFUSED),
        ("kill", (0, 9), REFUSED),
        ("kill", (2**32 - 1, 9), REFUSED),
        ("tgkill", (PID, PID, 9), ALLOW),
        ("tgkill", (PARENT, PARENT, 9), REFUSED),
        ("prlimit64", (0, 7, 0, 0x7FFF12345678), ALLOW),
        ("prlimit64", (0, 7, 0x7FFF12345678, 0), REFUSED),
        ("prlimit64", (0, 7, 0x7FFF00000000, 0), REFUSED),
        ("fcntl", (3, 4), ALLOW),
        ("fcntl", (3, 8, PARENT), REFUSED),
        ("fcntl", (3, 10, 9), REFUSED),
        ("fcntl", (3, 15, 0), REFUSED),
        ("ioctl", (3, 0x5421), ALLOW),
        ("ioctl", (0, 0x5412), REFUSED),
        ("ioctl", (3, 0x8902), REFUSED),
        ("mmap", (0, 4096, 3, 0x22), ALLOW),
        ("mmap", (0, 4096, 3, 0x01), ALLOW),
        ("mmap", (0, 4096, 3, 0x21), REFUSED),
        ("mmap", (0, 4096, 3, 0x23), REFUSED),
        ("mmap", (0, 4096, 3, 0x122), REFUSED),
        ("connect", (3, 0, 0), REFUSED),
        ("sendto", (3, 0, 0, 0x4000), ALLOW),
        ("sendto", (3, 0, 0, 0x20004000), REFUSED),
        ("sendmsg", (3, 0, 0x20000000), REFUSED),
        ("sendmmsg", (3, 0, 1, 0x20000000), REFUSED),
        ("execve", (), REFUSED),
        ("truncate", (), REFUSED),
        (NEWEST + 1, (), ERROR | errno.ENOSYS),
        (0x40000000 + 59, (), ERROR | errno.ENOSYS),
    ],
)
def test_the_filter_decides(machine: str, name: str | int, arguments: tuple[int, ...], expected: int) -> None:
    assert verdict(machine, name, *arguments) == expected


def test_the_filter_lets_other_calls_pass(machine: str) -> None:
    known = set(numbers(machine).values())
    for number in set(range(NEWEST + 1)) - known:
        assert verdict(machine, number) == ALLOW
    assert verdict(machine, OPENAT[machine]) == ALLOW


def test_every_refused_call_is_refused(machine: str) -> None:
    known = numbers(machine)
    program = sandbox_seccomp.program(machine, refused(), conditions(PID))
    for name, error in refused().items():
        if name in known:
            assert run(program, known[name], (), AUDIT_MACHINES[machine]) == ERROR | error, name


def test_calls_by_another_machines_numbers_end_the_process(machine: str) -> None:
    program = sandbox_seccomp.program(machine, refused(), conditions(PID))
    assert run(program, 1, (), 0x40000003) == KILL_PROCESS


def test_the_lists_name_calls_of_the_table() -> None:
    named = {*refused(), *(condition.call for condition in conditions(PID))}
    assert named <= set(numbers("x86_64"))
    for machine in MACHINES:
        of_machine = list(numbers(machine).values())
        assert len(set(of_machine)) == len(of_machine)


def test_an_unknown_processor_has_no_filter() -> None:
    with pytest.raises(UnavailableError, match="riscv64"):
        sandbox_seccomp.program("riscv64", {}, ())


def test_a_wall_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(*_: object) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(sandbox_landlock, "call", missing)
    monkeypatch.setattr(sandbox_seccomp, "call", missing)
    monkeypatch.setattr(sandbox_seccomp, "forbid_new_privileges", lambda: None)
    assert "no Landlock in this kernel" in sandbox.confine_files(Rooms(tmp_path, tmp_path, tmp_path))
    assert "no seccomp filters in this kernel" in sandbox.confine_calls()


def test_other_systems_have_no_walls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert sandbox.confine_files(Rooms(tmp_path, tmp_path, tmp_path)) == "files open (none on darwin)"
    assert sandbox.confine_calls() == "system calls open (none on darwin)"


def test_a_folder_with_a_home_in_it_is_not_granted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rooms = Rooms(tmp_path / "peer" / "blobs", tmp_path / "peer" / "jobs" / "a", tmp_path / "run")
    code = tmp_path / "code"
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{code}::relative")
    readable = {path for grant in grants(rooms) for path in grant.paths}
    assert code in readable
    assert tmp_path not in readable
    assert not any(Path.home().is_relative_to(path) for path in readable)


def test_a_worker_gets_none_of_the_owners_secrets(tmp_path: Path) -> None:
    given = {
        "PATH": "/bin",
        "OMP_NUM_THREADS": "2",
        "AWS_SECRET_ACCESS_KEY": "s",
        "SSH_AUTH_SOCK": "/s",
        "HF_TOKEN": "t",
    }
    rooms = Rooms(tmp_path, tmp_path / "job", tmp_path)
    always = {
        "PATH": "/bin",
        "OMP_NUM_THREADS": "2",
        "TMPDIR": str(rooms.job),
        "TORCHINDUCTOR_CACHE_DIR": str(rooms.compiled),
        "OPENBLAS_NUM_THREADS": "1",
    }
    assert environment(given, rooms) == always | {"CUDA_VISIBLE_DEVICES": ""}
    given["CUDA_VISIBLE_DEVICES"] = "1"
    of_a_gpu = {"CUDA_VISIBLE_DEVICES": "1", "CUDA_CACHE_PATH": str(rooms.compiled)}
    assert environment(given, rooms, driving=True) == always | of_a_gpu


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("execve", (), ALLOW),
        ("vfork", (), ALLOW),
        ("execveat", (), REFUSED),
        ("clone", (17,), ALLOW),
        ("clone", (0x3D0F00,), ALLOW),
        ("clone", (0x10000000 | 17,), REFUSED),
        ("clone", (0x40000000 | 17,), REFUSED),
        ("clone", (0x8000 | 17,), REFUSED),
        ("setsid", (), REFUSED),
        ("setpgid", (0, 0), REFUSED),
        ("socket", (socket.AF_INET, STREAM), REFUSED),
        ("connect", (3, 0, 0), REFUSED),
        ("kill", (PARENT, 9), REFUSED),
    ],
)
def test_a_worker_that_compiles_may_start_programs(
    machine: str, name: str, arguments: tuple[int, ...], expected: int
) -> None:
    if name not in numbers(machine):
        pytest.skip("this machine lacks the call")
    program = sandbox_seccomp.program(machine, refused(True), conditions(PID, True))
    assert run(program, numbers(machine)[name], arguments, AUDIT_MACHINES[machine]) == expected


def test_only_the_compilers_programs_become_executable(tmp_path: Path) -> None:
    rooms = Rooms(tmp_path / "blobs", tmp_path / "job", tmp_path / "sockets")
    execute = sandbox_landlock.Access.EXECUTE
    assert not any(grant.access & execute and grant.paths for grant in grants(rooms))
    programs = (Path("/usr/bin/g++"), Path("/usr/bin/as"))
    assert [g.paths for g in grants(rooms, programs) if g.access & execute] == [programs]
    assert environment({}, rooms, programs)["TORCHINDUCTOR_CACHE_DIR"] == str(rooms.compiled)


def test_a_gpus_driver_gets_its_devices_and_its_threads_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms = Rooms(tmp_path, tmp_path / "job", tmp_path)
    threads = Path(sandbox_rules.OWN_THREADS)
    monkeypatch.setattr(sandbox_rules, "GPU_DEVICES", "/dev/no-such-gpu*")
    without = grants(rooms, driving=True)
    assert not any(threads in grant.paths for grant in without)
    monkeypatch.setattr(sandbox_rules, "GPU_DEVICES", "/dev/nul*")
    assert grants(rooms) == without
    drive = [grant.access for grant in grants(rooms, driving=True) if Path("/dev/null") in grant.paths]
    assert drive[-1] & sandbox_landlock.Access.IOCTL_DEV
    (writable,) = (grant for grant in grants(rooms, driving=True) if threads in grant.paths)
    assert writable.access == sandbox_landlock.Access.WRITE_FILE | sandbox_landlock.Access.TRUNCATE
    assert {one.call for one in {*conditions(PID)} - {*conditions(PID, driving=True)}} == {"mmap"}
