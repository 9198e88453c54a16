"""What the tests of the sandbox start: a process that puts up its walls and then tries to get out.

Prints one JSON object: outcome by attempt, "done" or the error's name ("EACCES"). `--plain` leaves out what
needs torch, so that any Python may run it.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import errno
import fcntl
import json
import mmap
import os
import resource
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ravnest_p2p.daemon.worker import guard, sandbox, sandbox_landlock, sandbox_rules
from ravnest_p2p.daemon.worker.sandbox_syscalls import call

Attempts = dict[str, Callable[[], Any]]


def outcome(attempt: Callable[[], Any]) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno] if error.errno else type(error).__name__
    return "done"


def outcomes(attempts: Attempts) -> dict[str, str]:
    return {name: outcome(attempt) for name, attempt in attempts.items()}


def in_thread(attempt: Callable[[], Any]) -> None:
    """Raises what the attempt raised in a thread of its own."""
    caught: list[OSError] = []

    def run() -> None:
        try:
            attempt()
        except OSError as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if caught:
        raise caught[0]


def syscall(number: int) -> None:
    if ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number)) < 0:
        raise OSError(ctypes.get_errno(), "syscall")


def of_files(home: Path, job: Path) -> Attempts:
    """What Landlock shall refuse."""
    key = home / "identity.key"
    return {
        "read the key": key.read_bytes,
        "read the key in a thread": lambda: in_thread(key.read_bytes),
        "read the key through proc": Path(f"/proc/self/root{key}").read_bytes,
        "overwrite the key": lambda: key.write_bytes(b""),
        "empty the key": lambda: os.open(key, os.O_TRUNC),
        "read the state": (home / "state.json").read_bytes,
        "list the peer's folder": lambda: os.listdir(home),
        "list the user's home": lambda: os.listdir(os.path.expanduser("~")),
        "list temporary files": lambda: os.listdir("/tmp"),
        "read the users": Path("/etc/passwd").read_bytes,
        "write beside": (home / "new").touch,
        "write into the store": (home / "blobs" / "new").touch,
        "remove a blob": (home / "blobs" / "ab" / "blob").unlink,
        "read another job": (home / "jobs" / "other" / "piece").read_bytes,
        "rename the key": lambda: key.rename(job / "key"),
        "link the key": lambda: os.link(key, job / "key"),
        "lay a trap for whoever reads": lambda: os.symlink(key, job / "symlink"),
        "replace p2pd": (home / "run" / "p2pd.sock").unlink,
        "see the parent's variables": Path(f"/proc/{os.getppid()}/environ").read_bytes,
        "see the parent's command": Path(f"/proc/{os.getppid()}/cmdline").read_bytes,
    }


def sent_from(listener: socket.socket) -> None:
    """A listening socket that is shut is connected to nobody, and may be connected by its first bytes."""
    to = listener.getsockname()
    listener.shutdown(socket.SHUT_RD)
    listener.sendto(b"hello", socket.MSG_FASTOPEN, to)


def of_calls(home: Path, listener: socket.socket) -> Attempts:
    """What seccomp shall refuse; `listener` is what a worker inherits."""
    key, parent = home / "identity.key", os.getppid()
    unix = socket.socketpair()
    return {
        "open IPv4": lambda: socket.socket(socket.AF_INET).close(),
        "open IPv6": lambda: socket.socket(socket.AF_INET6).close(),
        "open netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
        "open datagrams": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).close(),
        "pair datagrams": lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
        "connect": lambda: socket.socket(socket.AF_UNIX).connect(str(home / "run" / "p2pd.sock")),
        "connect what listened, by what is sent": lambda: sent_from(listener),
        "connect to an abstract name": lambda: socket.socket(socket.AF_UNIX).connect("\0nobody"),
        "start a program": lambda: os.posix_spawn("/bin/true", ["true"], {}),
        "become a program": lambda: os.execv("/bin/true", ["true"]),
        "fork": lambda: os.fork() or os._exit(0),
        "signal the parent": lambda: os.kill(parent, 0),
        "signal the group": lambda: os.kill(0, 0),
        "signal everybody": lambda: os.kill(-1, 0),
        "signal the parent's thread": lambda: call("tgkill", parent, parent, 0),
        "have the parent signalled": lambda: fcntl.fcntl(unix[0], fcntl.F_SETOWN, parent),
        "trace the parent": lambda: call("ptrace", 16, parent, 0, 0),
        "read the parent's memory": lambda: call("process_vm_readv", parent, None, 0, None, 0, 0),
        "raise a limit": lambda: call("setrlimit", 1, None),
        "limit the parent": lambda: call("prlimit64", parent, 7, ctypes.byref((ctypes.c_uint64 * 2)()), None),
        "change the key's mode": lambda: key.chmod(0o666),
        "truncate the key": lambda: os.truncate(key, 0),
        "touch the key": lambda: os.utime(key),
        "watch a folder": lambda: call("inotify_init1", 0),
        "take memory aside": lambda: os.memfd_create("aside"),
        "share memory with nobody": lambda: mmap.mmap(-1, 4096).close(),
        "have memory grow by itself": lambda: mmap.mmap(-1, 4096, sandbox_rules.GROWING_DOWN | 0x22).close(),
        "unshare": lambda: call("unshare", 0x10000000),
        "set up a ring": lambda: call("io_uring_setup", 1, None),
    }


def of_use(job: Path) -> Attempts:
    """What a worker needs and shall get."""

    def write_as_pieces_are() -> None:
        with open(job / "piece.tmp", "wb") as file:
            file.write(b"piece")
            os.fsync(file.fileno())
        os.replace(job / "piece.tmp", job / "piece")
        folder = os.open(job, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    return {
        "read a blob": (job.parent.parent / "blobs" / "ab" / "blob").read_bytes,
        "write a piece": write_as_pieces_are,
        "use a temporary file": lambda: tempfile.TemporaryFile().close(),
        "start a thread": lambda: in_thread(lambda: None),
        "signal oneself": lambda: signal.raise_signal(signal.SIGURG),
        "know one's limits": lambda: resource.getrlimit(resource.RLIMIT_DATA),
        "read about oneself": Path("/proc/self/status").read_bytes,
        "draw random bytes": Path("/dev/urandom").open("rb").close,
        "import": lambda: __import__("wave"),
    }


def train(job: Path) -> None:
    """Two updates with threads, convolution and BatchNorm, the weights saved and read; and what reading a
    stranger's program has torch load."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from ravnest_p2p.training import draft_piece, load_pieces, spec_of

    torch.set_num_threads(2)
    FakeTensorMode()
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(1800, 10),
    )
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(64, 3, 17, 17)).logsumexp(1).sum().backward()
        optimizer.step()
    params = {name: tensor.detach() for name, tensor in model.named_parameters()}
    path = job / "trained.safetensors"
    with draft_piece(path, params, {}, {}, version=2, batches_done=2) as draft:
        draft.finish()
    load_pieces([path], {name: spec_of(tensor) for name, tensor in params.items()}, {})


def of_drivers() -> Attempts:
    """What a GPU's driver does at its start and later; and what nobody shall do in its place."""

    def name_a_thread(process: str) -> None:
        for thread in os.listdir(f"/proc/{process}/task"):
            Path(f"/proc/{process}/task/{thread}/comm").write_text("driver")

    parent = os.getppid()
    return {
        "name a thread": lambda: in_thread(lambda: name_a_thread("self")),
        "name the parent's thread": lambda: Path(f"/proc/{parent}/comm").write_text("driver"),
        "protect oneself from the killer": lambda: Path("/proc/self/oom_score_adj").write_text("0"),
    }


async def through_the_door(sockets: Path) -> None:
    """Ask p2pd, as the test plays it, to connect to a server of ours, as p2pd does with a remote's stream."""
    greeted = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greeted.set_result(await reader.read())
        writer.close()

    path = sockets / "p2pclient-0123456789a.sock"
    async with await asyncio.start_unix_server(serve, path):
        _, writer = await asyncio.open_unix_connection("/whatever", limit=100_000)
        writer.write(f"{path}\n".encode())
        if await asyncio.wait_for(greeted, 10) != b"greetings":
            raise OSError("a wrong greeting")
        writer.close()
    path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--abi", type=int, default=0, help="pretend that the kernel's Landlock is no newer")
    parser.add_argument("--door", type=int)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--open", action="store_true", help="without walls: what would be possible")
    parser.add_argument("--crash", choices=("raise", "segfault"))
    parser.add_argument("--driving", action="store_true", help="as if /dev/zero were a GPU")
    options = parser.parse_args()
    home: Path = options.home
    rooms = sandbox.Rooms(home / "blobs", home / "jobs" / "ours", home / "run" / "w0")
    if options.open:
        json.dump(outcomes(of_files(home, rooms.job)), sys.stdout)
        return
    if not options.plain:
        import uvloop

        from ravnest_p2p.daemon.worker.__main__ import faulthandler
        from ravnest_p2p.daemon.worker.sandbox_door import Door, DoorLoop

        faulthandler.enable()
    if options.abi:
        sandbox_landlock.offered = lambda: options.abi
    if options.driving:
        sandbox_rules.GPU_DEVICES = "/dev/zero"
    guard.give_up_privileges()
    listener = socket.create_server(("127.0.0.1", 0))
    walls = [sandbox.confine_files(rooms, driving=options.driving)]
    guard.limit_resources(10**9, 10**8)
    by_files = outcomes(of_files(home, rooms.job))
    walls.append(sandbox.confine_calls(driving=options.driving))
    if options.crash == "raise":
        raise RuntimeError("the last words of a worker")
    if options.crash == "segfault":
        ctypes.string_at(0)
    found = by_files | outcomes(of_calls(home, listener)) | outcomes(of_use(rooms.job))
    if options.driving:
        found |= outcomes(of_drivers())
    found["make a call of the future"] = outcome(lambda: syscall(100_000))
    if not options.plain:
        found["train"] = outcome(lambda: train(rooms.job))
        loop = DoorLoop.through(Door(options.door))
        talk = lambda: uvloop.run(through_the_door(rooms.sockets), loop_factory=lambda: loop)  # noqa: E731
        found["talk with p2pd"] = outcome(talk)
    status = Path("/proc/self/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    json.dump({"walls": walls, "outcomes": found, "status": fields}, sys.stdout)


if __name__ == "__main__":
    main()
