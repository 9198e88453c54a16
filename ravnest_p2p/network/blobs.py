"""Content-addressed files of one peer: programs, weights, data shards, saved pieces.

Problem: large files come from strangers in parts, the owner caps the disk they may fill, and the process
can be killed at any byte. Solution: a blob is named by its SHA-256 and appears under that name only when
it is whole, checked and synced; until then it is a temporary file, which the next start removes. When the
store is full, blobs that nobody pinned go, the longest unused first.

folder/ab/ab12… a blob, mode 0600; its modification time is its last use folder/tmp/… writes in progress
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import threading
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import BinaryIO

from ravnest_p2p.core.errors import BlobError, BlobStoreError
from ravnest_p2p.core.types import BlobHash

_COPY_BYTES = 1 << 20
_HEX = frozenset("0123456789abcdef")


def check_hash(value: object) -> BlobHash:
    """`value` as a blob's name, which is safe as a file name.

    Raises:
        BlobError: it is not 64 lower-case hex digits.
    """
    if not isinstance(value, str) or len(value) != 64 or not _HEX.issuperset(value):
        raise BlobError(f"{str(value)[:80]!r} is not a blob hash")
    return BlobHash(value)


class BlobStore:
    """Blobs in one folder. Thread-safe; its calls block on the disk, so call it in a thread from async code.

    Args:
        folder: created with mode 0700; belongs to one process at a time.
        capacity_bytes: of all blobs and writes in progress.
    """

    def __init__(self, folder: Path | str, capacity_bytes: int) -> None:
        self._folder = Path(folder)
        self._capacity_bytes = capacity_bytes
        self._lock = threading.RLock()
        self._sizes: OrderedDict[BlobHash, int] = OrderedDict()
        self._reserved_bytes = 0
        self._pins: defaultdict[str, set[BlobHash]] = defaultdict(set)
        self._temporary = self._folder / "tmp"
        self._temporary.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in self._temporary.iterdir():
            leftover.unlink()
        self._load()

    def _load(self) -> None:
        found = []
        for shard in self._folder.iterdir():
            if len(shard.name) == 2 and shard.is_dir():
                found += [(f.stat(), f.name) for f in shard.iterdir() if _is_hash(f.name) and f.is_file()]
        for stat, name in sorted(found, key=lambda item: item[0].st_mtime_ns):
            self._sizes[BlobHash(name)] = stat.st_size

    @property
    def folder(self) -> Path:
        """Where the blobs lie."""
        return self._folder

    @property
    def capacity_bytes(self) -> int:
        """Of all blobs and writes in progress."""
        return self._capacity_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes of blobs and of writes in progress."""
        with self._lock:
            return sum(self._sizes.values()) + self._reserved_bytes

    def hashes(self) -> tuple[BlobHash, ...]:
        """All blobs, the longest unused first."""
        with self._lock:
            return tuple(self._sizes)

    def has(self, name: BlobHash) -> bool:
        with self._lock:
            return name in self._sizes

    def size(self, name: BlobHash) -> int:
        """Bytes of a blob.

        Raises:
            BlobError: it is not here.
        """
        with self._lock:
            if name not in self._sizes:
                raise BlobError(f"blob {str(name)[:80]} is not here")
            return self._sizes[name]

    def path(self, name: BlobHash) -> Path:
        """File of a blob, which counts as a use. Pin the blob while the file must stay.

        Raises:
            BlobError: it is not here.
        """
        with self._lock:
            self.size(name)
            self._sizes.move_to_end(name)
            path = self._path(name)
            try:
                os.utime(path)
            except FileNotFoundError:
                del self._sizes[name]
                raise BlobError(f"the file of blob {name} was removed from the store") from None
            return path

    def put_bytes(self, data: bytes | bytearray | memoryview) -> BlobHash:
        """Stores `data`; does nothing where it is here already.

        Raises:
            BlobStoreError: no room.
        """
        name = BlobHash(hashlib.sha256(data).hexdigest())
        if self.has(name):
            self.path(name)
            return name
        with self.writer(name, memoryview(data).nbytes) as writer:
            writer.write(data)
            writer.finish()
        return name

    def put_file(self, path: Path | str) -> BlobHash:
        """Stores a copy of a file, reading it once to name it and once to copy it.

        Raises:
            BlobStoreError: no room.
            BlobError: the file changed meanwhile.
            OSError: it cannot be read.
        """
        with open(path, "rb") as source:
            digest = hashlib.sha256()
            while part := source.read(_COPY_BYTES):
                digest.update(part)
            name, size = BlobHash(digest.hexdigest()), source.tell()
            if self.has(name):
                self.path(name)
                return name
            source.seek(0)
            with self.writer(name, size) as writer:
                while part := source.read(_COPY_BYTES):
                    writer.write(part)
                writer.finish()
        return name

    def writer(self, name: BlobHash, size_bytes: int) -> BlobWriter:
        """Room for a blob that arrives in parts; use as a context manager.

        Raises:
            BlobStoreError: no room, even without all unpinned blobs.
            BlobError: not a hash, or a negative size.
        """
        check_hash(name)
        if size_bytes < 0:
            raise BlobError(f"a blob of {size_bytes} bytes")
        with self._lock:
            self._make_room(size_bytes)
            self._reserved_bytes += size_bytes
        return BlobWriter(self, name, size_bytes)

    def pin(self, owner: str, name: BlobHash) -> None:
        """Keeps a blob, here or to come, until `unpin(owner)`. Pins end with the process."""
        with self._lock:
            self._pins[owner].add(name)

    def unpin(self, owner: str, name: BlobHash | None = None) -> None:
        """Gives up one pin of `owner`, or all of them."""
        with self._lock:
            pins = self._pins.get(owner, set())
            if name is not None:
                pins.discard(name)
            if name is None or not pins:
                self._pins.pop(owner, None)

    def _make_room(self, size_bytes: int) -> None:
        """Removes unpinned blobs, the longest unused first, until `size_bytes` more fit."""
        missing = self.used_bytes + size_bytes - self._capacity_bytes
        if missing <= 0:
            return
        pinned = set().union(*self._pins.values())
        going: list[BlobHash] = []
        for name, size in self._sizes.items():
            if missing > 0 and name not in pinned:
                going.append(name)
                missing -= size
        if missing > 0:
            raise BlobStoreError(
                f"no room for {size_bytes} bytes: {self._capacity_bytes} bytes are lent and "
                f"{missing} too few can be freed, since the rest is in use; lend more disk"
            )
        for name in going:
            del self._sizes[name]
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: BlobHash) -> Path:
        return self._folder / name[:2] / name

    def _settle(self, writer: BlobWriter, source: Path | None) -> Path:
        """Ends a write: moves its file to its place, or only frees its room."""
        with self._lock:
            self._reserved_bytes -= writer.size_bytes
            path = self._path(writer.name)
            if source is not None:
                path.parent.mkdir(mode=0o700, exist_ok=True)
                os.replace(source, path)
                _sync_folder(path.parent)
                self._sizes[writer.name] = writer.size_bytes
                self._sizes.move_to_end(writer.name)
            return path

    def _open_temporary(self, name: BlobHash) -> tuple[Path, BinaryIO]:
        path = self._temporary / f"{name}.{secrets.token_hex(8)}"
        return path, os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


class BlobWriter:
    """A blob being written. Leaving its context without `finish` removes what was written.

    Attributes:
        name, size_bytes: what was promised.
        offset: bytes written so far.
    """

    def __init__(self, store: BlobStore, name: BlobHash, size_bytes: int) -> None:
        self.name = name
        self.size_bytes = size_bytes
        self.offset = 0
        self._store = store
        self._digest = hashlib.sha256()
        self._lock = threading.RLock()
        self._open = True
        try:
            self._path, self._file = store._open_temporary(name)
        except OSError as error:
            store._settle(self, None)
            raise BlobStoreError(f"blob {name} cannot be written: {error}") from None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Takes the next bytes.

        Raises:
            BlobError: more than promised, or the write was given up.
            BlobStoreError: the disk is full or broken.
        """
        count = memoryview(data).nbytes
        with self._lock:
            if not self._open or self.offset + count > self.size_bytes:
                raise BlobError(f"blob {self.name} takes no more than its {self.size_bytes} bytes")
            try:
                self._file.write(data)
            except OSError as error:
                raise BlobStoreError(f"blob {self.name} cannot be written: {error}") from None
            self._digest.update(data)
            self.offset += count

    def finish(self) -> Path:
        """Checks size and hash, syncs, and gives the blob its name.

        Raises:
            BlobError: size or hash is wrong, or the write was given up; nothing is kept.
            BlobStoreError: the disk is full or broken; nothing is kept.
        """
        with self._lock:
            try:
                if not self._open or self.offset != self.size_bytes:
                    raise BlobError(f"blob {self.name} ended at {self.offset} of {self.size_bytes} bytes")
                if self._digest.hexdigest() != self.name:
                    raise BlobError(f"blob {self.name} has the hash {self._digest.hexdigest()}")
                self._file.flush()
                os.fsync(self._file.fileno())
            except BlobError:
                self.abort()
                raise
            except OSError as error:
                self.abort()
                raise BlobStoreError(f"blob {self.name} cannot be written: {error}") from None
            self._open = False
            self._file.close()
            return self._store._settle(self, self._path)

    def abort(self) -> None:
        """Removes what was written; safe to call twice."""
        with self._lock:
            if not self._open:
                return
            self._open = False
            with contextlib.suppress(OSError):
                self._file.close()
            self._path.unlink(missing_ok=True)
            self._store._settle(self, None)

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()


def _is_hash(name: str) -> bool:
    return len(name) == 64 and _HEX.issuperset(name)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
