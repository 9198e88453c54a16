"""Nothing stays behind, whatever dies.

Problem: p2pd and the workers are children, their sockets are files; when ravnestd is killed with SIGKILL
none of its code runs, and a parent-death signal exists on linux only. Solution: a tiny watcher
(`/bin/sh`, about 1 MB) in a session of its own reads a pipe whose other end only ravnestd holds. Whatever
ends ravnestd closes the pipe; the watcher then kills the children that were registered, removes the
runtime folder with its sockets, and exits. A child counts as ours only while its start time is the one
noted at registration, so a reused process id never costs a stranger's life. Folders whose peer *and*
watcher died (power loss) are swept at the next start.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import subprocess
import tempfile
from io import BufferedWriter
from pathlib import Path

from ravnest_p2p.core.errors import ConfigError, LocalDaemonError

MAX_FOLDER_CHARS = 64
"""A unix socket's path may have 103 characters (macOS), and the longest name in the folder takes 35."""
_PREFIX = "ravnest-"
_LOCK_NAME = "lock"

_WATCHER = r"""
trap '' INT TERM HUP QUIT PIPE
folder=$1
started() {
    if [ -r "/proc/$1/stat" ]; then
        read -r line < "/proc/$1/stat" || return 0
        set -- ${line##*) }
        echo "${20}"
    else
        echo $(LC_ALL=C ps -o lstart= -p "$1" 2>/dev/null)
    fi
}
children=
while read -r verb pid; do
    case $verb in
        watch) children="$children $pid:$(started "$pid" | tr ' ' _)" ;;
        forget)
            kept=
            for child in $children; do
                [ "${child%%:*}" = "$pid" ] || kept="$kept $child"
            done
            children=$kept ;;
    esac
done
for child in $children; do
    pid=${child%%:*}
    now=$(started "$pid" 2>/dev/null | tr ' ' _)
    [ -n "$now" ] && [ "$now" = "${child#*:}" ] && kill -9 "$pid" 2>/dev/null
done
rm -rf -- "$folder"
"""


class Janitor:
    """Owner of the runtime folder, and avenger of registered children. Make one with `start`."""

    def __init__(self, folder: Path, lock: BufferedWriter) -> None:
        self.runtime_dir = folder
        self._lock = lock
        self._children: set[int] = set()
        self._watcher: subprocess.Popen[bytes] | None = None

    @classmethod
    def start(cls, base: str | os.PathLike[str] | None = None) -> Janitor:
        """A new private runtime folder (mode 0700) with its watcher.

        Args:
            base: where the folder is made; by default `$XDG_RUNTIME_DIR`, else the temporary folder.
        Raises:
            ConfigError: no folder can be made there, or its path is too long for a unix socket.
        """
        parent = Path(base or os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()).resolve()
        if base is None and not os.access(parent, os.W_OK):
            parent = Path("/tmp")
        if len(str(parent)) + len(_PREFIX) + 9 > MAX_FOLDER_CHARS:
            raise ConfigError(
                f"{parent} is too long a path for sockets; choose a shorter folder, such as /tmp"
            )
        sweep(parent)
        folder, lock = _make_folder(parent)
        janitor = cls(folder, lock)
        janitor._spawn()
        return janitor

    def watch(self, pid: int) -> None:
        """Have this child killed when ravnestd dies."""
        self._children.add(pid)
        self._tell("watch", pid)

    def forget(self, pid: int) -> None:
        """The child has been reaped."""
        self._children.discard(pid)
        self._tell("forget", pid)

    def close(self, timeout_s: float = 5.0) -> None:
        """Do it now: kill what is still registered, remove the folder, and wait for the watcher."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            try:
                watcher.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                watcher.kill()
                watcher.wait()
        shutil.rmtree(self.runtime_dir, ignore_errors=True)
        self._lock.close()

    @property
    def watcher_pid(self) -> int | None:
        """Process id of the watcher."""
        return None if self._watcher is None else self._watcher.pid

    def _spawn(self) -> None:
        try:
            self._watcher = subprocess.Popen(
                ["/bin/sh", "-c", _WATCHER, "ravnest-janitor", str(self.runtime_dir)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
                bufsize=0,
            )
        except OSError as error:
            raise LocalDaemonError(f"the janitor process cannot be started: {error}") from error
        for pid in self._children:
            self._write("watch", pid)

    def _tell(self, verb: str, pid: int) -> None:
        if self._watcher is None:
            return
        # Asked first: a child of the dead shell may hold the pipe open for a moment more.
        if self._watcher.poll() is None:
            try:
                self._write(verb, pid)
                return
            except BrokenPipeError:
                self._watcher.wait()
        self._spawn()

    def _write(self, verb: str, pid: int) -> None:
        assert self._watcher is not None
        assert self._watcher.stdin is not None
        self._watcher.stdin.write(f"{verb} {pid}\n".encode())


def sweep(parent: Path) -> list[Path]:
    """Remove runtime folders of ours that no living peer holds; returns those removed."""
    removed = []
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            status = folder.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
                continue
            with open(folder / _LOCK_NAME, "rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(folder)
        except OSError:
            continue
    return removed


def _make_folder(parent: Path) -> tuple[Path, BufferedWriter]:
    for _ in range(5):
        try:
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            lock = open(folder / _LOCK_NAME, "wb")  # noqa: SIM115 -- held until close
        except OSError as error:
            raise ConfigError(f"no folder can be made in {parent}: {error.strerror}") from error
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / _LOCK_NAME).exists():
            return folder, lock
        lock.close()  # another peer's sweep came between the folder and its lock
    raise LocalDaemonError(f"the folders made in {parent} are removed again and again")
