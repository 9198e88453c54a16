"""Initial weights as many small files, so that nobody has to hold more of them than they train.

Problem: a model of gigabytes in one file has to lie whole with every peer that trains a twentieth of it.
Solution: whole tensors are put into files of bounded size by the layers that need them, so that the files of
layers [lo, hi) are a small part of all. The same program and weights give the same files, hence the same
hashes. Reading maps the files: a tensor takes memory where it is touched.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ravnest_p2p.core.errors import PackageError
from ravnest_p2p.core.strict_json import strict_json
from ravnest_p2p.model.node import Leaf, TensorSpec
from ravnest_p2p.model.parse import Limits
from ravnest_p2p.model.program import Program
from ravnest_p2p.model.stranger import read_ordinary

PART_BYTES = 32 << 20
"""A file of weights is at most so large, unless one tensor alone is larger."""
SMALL_BYTES = 256 << 10
"""Up to this size, tensors of neighbouring layers share a file, which saves requests."""
MAX_FILES = 65536
HEADER_LIMIT_BYTES = 8 << 20
"""A header of weights over this is refused: about 70,000 tensors."""

_MOST_RANGES = 4
_STORED = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}

Ranges = tuple[tuple[int, int], ...]
"""Layers as ranges [lo, hi), ascending and apart."""


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A file of weights; a stage needs it where it trains any of these layers."""

    path: Path
    layers: Ranges


@dataclass(slots=True)
class _Part:
    layers: Ranges
    names: list[str]
    size_bytes: int

    def takes(self, layers: Ranges, size_bytes: int) -> bool:
        """Whether a tensor belongs here: of the same layers while there is room, of the next while small."""
        together = self.size_bytes + size_bytes
        if layers == self.layers:
            return together <= PART_BYTES
        return together <= SMALL_BYTES and len(layers) == len(self.layers) == 1

    def add(self, name: str, layers: Ranges, size_bytes: int) -> None:
        self.names.append(name)
        self.size_bytes += size_bytes
        if layers != self.layers:
            self.layers = (_hull(self.layers + layers),)


def layers_of(program: Program) -> dict[str, Ranges]:
    """Layers that need each parameter and buffer, also where they only compute it into something again.

    A parameter is needed by the first that uses it: later stages get it from there. A tensor that no layer
    needs goes with the first; one that is needed here and there, by all in between.
    """
    remade, first = program.cut_map.remade, program.first_slots
    inputs, leaves = len(program.inputs), len(program.leaves)
    behind: dict[int, frozenset[int]] = {s: frozenset([s]) for s in range(inputs, leaves)}
    users: dict[int, set[int]] = {s: set() for s in range(inputs, leaves)}
    nothing: frozenset[int] = frozenset()
    for index, node in enumerate(program.nodes):
        needed = nothing.union(*(behind.get(slot, nothing) for slot in node.refs()))
        layer = bisect_right(program.layer_bounds, index)
        for slot in needed:
            if program.leaves[slot].kind != "param" or not users[slot]:
                users[slot].add(layer)
        for slot in range(first[index], first[index + 1]):
            if remade[slot]:
                behind[slot] = needed
    return {program.leaves[slot].name: _ranges(sorted(found or {0})) for slot, found in users.items()}


def write_weights(folder: Path, program: Program, weights: Mapping[str, Tensor]) -> list[WeightsFile]:
    """Write the weights into an existing folder, one file after another.

    Raises:
        OSError: the disk is full, or the folder is missing.
    """
    files = []
    for number, part in enumerate(_parts(program)):
        path = folder / file_name(number)
        save_file({name: weights[name].contiguous() for name in part.names}, path)
        files.append(WeightsFile(path, part.layers))
    return files


def file_name(number: int) -> str:
    """Name of a file of weights in a package's folder."""
    return f"weights-{number:05d}.safetensors"


def load_tensors(
    paths: Sequence[str | os.PathLike[str]], wanted: Mapping[str, TensorSpec], *, partial: bool = False
) -> dict[str, Tensor]:
    """Named tensors from safetensors files, mapped; headers are checked before any tensor is taken.

    Writing to a tensor changes a copy of the page, never the file.

    Args:
        wanted: what the files must hold, together and nothing else.
        partial: other tensors in the files are skipped instead of refused; a stage reads its own that way.
    Raises:
        PackageError: a file is malformed; a tensor is missing, extra, twice there, or has another shape or
            dtype.
    """
    found: dict[str, Tensor] = {}
    for path in paths:
        _check_header(path)
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                names = [name for name in file.keys() if not partial or name in wanted]  # noqa: SIM118
                for name in names:
                    _check(file.get_slice(name), name, wanted, found)
                for name in names:
                    found[name] = file.get_tensor(name)
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise PackageError(f"weights file refused: {str(error)[:400]}") from error
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise PackageError(
            f"weights lack {missing[0]!r}" + (f" and {len(missing) - 1} more" if missing[1:] else "")
        )
    return found


def _parts(program: Program) -> Iterator[_Part]:
    layers = layers_of(program)

    def place(leaf: Leaf) -> Ranges:
        return layers[leaf.name]

    part: _Part | None = None
    for leaf in sorted(program.params + program.buffers, key=place):
        size = leaf.spec.nbytes
        if part is None or not part.takes(place(leaf), size):
            if part is not None:
                yield part
            part = _Part(place(leaf), [], 0)
        part.add(leaf.name, place(leaf), size)
    if part is not None:
        yield part


def _ranges(layers: Sequence[int]) -> Ranges:
    found: list[tuple[int, int]] = []
    for layer in layers:
        if found and found[-1][1] == layer:
            found[-1] = (found[-1][0], layer + 1)
        else:
            found.append((layer, layer + 1))
    return tuple(found) if len(found) <= _MOST_RANGES else (_hull(found),)


def _hull(ranges: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return min(lo for lo, _ in ranges), max(hi for _, hi in ranges)


def _check_header(path: str | os.PathLike[str]) -> None:
    """Refuse what the library would take in: pipes and links, a key twice, a header as large as memory."""
    length = int.from_bytes(read_ordinary(path, 8, head_only=True), "little")
    if length > HEADER_LIMIT_BYTES:
        raise PackageError(f"weights file refused: a header of {length} bytes, over {HEADER_LIMIT_BYTES}")
    try:
        strict_json(read_ordinary(path, 8 + length, head_only=True)[8:], Limits().items)
    except ValueError as error:
        raise PackageError(f"weights file refused: the header is not valid JSON: {error}") from error


def _check(header: object, name: str, wanted: Mapping[str, TensorSpec], found: Mapping[str, Tensor]) -> None:
    if name in found:
        raise PackageError(f"weights hold {name[:100]!r} twice")
    if name not in wanted:
        raise PackageError(f"weights hold {name[:100]!r}, which the program does not use")
    shape, dtype = tuple(header.get_shape()), _STORED.get(header.get_dtype())  # type: ignore[attr-defined]
    spec = wanted[name]
    if (shape, dtype) != (spec.shape, spec.dtype):
        raise PackageError(f"weight {name!r} is {shape} {dtype}, not {spec.shape} {spec.dtype}")
