"""Safetensors files, written so that they are never half there, and read as a stranger's.

Problem: pieces and shards are blobs named by their hash, come from other peers, and are as large as memory.
Solution: a writer that streams each tensor from its own memory, is deterministic (same tensors, same hash;
the library's own writer orders metadata at random), syncs and renames; a reader that looks at the header's
size before anything parses it, takes ordinary files only, and gives lazily mapped tensors, each only
against its dtype and shape.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ravnest_p2p.core.errors import BlobError, OurFault
from ravnest_p2p.core.strict_json import strict_json

HEADER_LIMIT_BYTES = 16 << 20
"""A header over this is refused: about 100,000 tensors."""
_HEADER_ITEMS = 1_000_000

_CODES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
}


class TensorSpec(NamedTuple):
    """What a tensor must be: torch dtype name without prefix, and shape."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


def spec_of(tensor: Tensor) -> TensorSpec:
    """Dtype and shape of a tensor, on any device, meta included."""
    return TensorSpec(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write one safetensors file: temporary, synced, renamed; the same content gives the same bytes.

    Raises:
        OurFault: a dtype that the format does not carry.
        OSError: the disk is full, or the folder is missing; no temporary file is left.
    """
    with TensorDraft(path, tensors, metadata) as draft:
        draft.finish()


class TensorDraft:
    """A safetensors file that is written, but not there yet: some of its tensors may still be replaced.

    A context manager; what is not finished inside leaves no file.

    Args:
        tensors: written at once; their memory is not kept.
    Raises:
        OurFault: a dtype that the format does not carry.
        OSError: the disk is full, or the folder is missing; no temporary file is left.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
        offset, order = 0, sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
        for name in order:
            dtype, shape = spec_of(tensors[name])
            if dtype not in _CODES:
                raise OurFault(f"tensor {name!r} is {dtype}, which no piece or shard carries")
            end = offset + tensors[name].numel() * tensors[name].element_size()
            header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._places: dict[str, tuple[int, torch.dtype, int]] = {}
        self._file = self._temporary.open("w+b", buffering=0)
        try:
            _write(self._file, len(text).to_bytes(8, "little") + text)
            for name in order:
                tensor = tensors[name]
                self._places[name] = (self._file.tell(), tensor.dtype, tensor.numel())
                if tensor.numel():
                    _write(self._file, _bytes_of(tensor))
        except BaseException:
            self.discard()
            raise

    def __enter__(self) -> TensorDraft:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def replace(self, name: str, values: Tensor) -> Tensor:
        """Write other values of a tensor, and get those that were there: flat, of the tensor's dtype.

        Args:
            values: as many elements as the tensor has; of any floating-point dtype.
        """
        at, dtype, elements = self._places[name]
        before = torch.empty(elements, dtype=dtype)
        if elements:
            self._file.seek(at)
            _read(self._file, _bytes_of(before))
            self._file.seek(at)
            _write(self._file, _bytes_of(values.reshape(elements).to(dtype)))
        return before

    def finish(self) -> None:
        """Sync it and put it in its place."""
        os.fsync(self._file.fileno())
        self._temporary.replace(self._path)
        self.discard()
        _sync_folder(self._path.parent)

    def discard(self) -> None:
        """Close it; what was not finished is gone."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)


class TensorFile:
    """An open, checked safetensors file; tensors are mapped, not read, until they are used."""

    def __init__(self, path: Path, handle: Any) -> None:
        self.name = path.name
        self._handle = handle
        self.metadata: dict[str, str] = handle.metadata() or {}
        self.names: frozenset[str] = frozenset(handle.keys())

    def spec(self, name: str) -> TensorSpec:
        """Dtype and shape of a tensor by the header; nothing of it is read.

        Raises:
            BlobError: a dtype that no piece or shard carries.
        """
        part = self._handle.get_slice(name)
        dtype = {code: dtype for dtype, code in _CODES.items()}.get(str(part.get_dtype()))
        if dtype is None:
            raise BlobError(f"{self.name}: tensor {name!r} has dtype {part.get_dtype()}")
        return TensorSpec(dtype, tuple(part.get_shape()))

    def mapped(self, name: str, wanted: TensorSpec) -> Tensor:
        """The tensor, mapped from the file.

        Raises:
            BlobError: it is missing, or of another dtype or shape.
        """
        if name not in self.names:
            raise BlobError(f"{self.name}: tensor {name!r} is missing")
        found = self.spec(name)
        if found != wanted:
            raise BlobError(f"{self.name}: tensor {name!r} is {found!s:.100}, not {wanted}")
        tensor: Tensor = self._handle.get_tensor(name)
        return tensor


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """Open a safetensors file that a stranger may have written.

    Raises:
        BlobError: unreadable, no ordinary file, not safetensors, with a header over `HEADER_LIMIT_BYTES`, or
            with a key twice in it.
    """
    try:
        _check_header(path)
        handle = safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise BlobError(f"{path.name} is no readable safetensors file: {error!s:.200}") from error
    with handle:
        yield TensorFile(path, handle)


def _check_header(path: Path) -> None:
    """Refuse what the library would take in: pipes, links, a header as large as memory, a key twice."""
    # Without O_NONBLOCK, opening a pipe waits for whoever writes to it.
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise BlobError(f"{path.name} is not an ordinary file")
    with os.fdopen(handle, "rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > HEADER_LIMIT_BYTES:
            raise BlobError(f"{path.name}: header of {header_bytes} bytes, over {HEADER_LIMIT_BYTES}")
        strict_json(file.read(header_bytes), _HEADER_ITEMS)


def _write(file: FileIO, data: bytes | memoryview) -> None:
    """All of it: one call takes 2 GiB at most."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _read(file: FileIO, into: memoryview) -> None:
    while into:
        count = file.readinto(into)
        if not count:
            raise OSError(f"{file.name} was cut short")
        into = into[count:]


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # some file systems cannot sync a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
