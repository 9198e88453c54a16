"""Parameters as one flat vector that a ring can cut, add up and write back.

Problem: a segment is some parameters and buffers, of many shapes, that its members all hold. They are moved
as equal chunks, without a second copy of all, and one member's NaN, or a chunk of another size, must never
get into everybody's model. Solution: `gather` lays the named tensors one after another in one float32 vector,
`SegmentValues` adds up and checks one chunk at a time, and `scatter` writes the vector back. Integer buffers
(BatchNorm's count) are not averaged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ravnest_p2p.core.errors import ChunkMismatchError, JobError, NonFiniteError, OurFault
from ravnest_p2p.core.rings import chunk_bounds
from ravnest_p2p.training.bounds import MeanBound
from ravnest_p2p.training.digests import ChunkDigests

ELEMENT_BYTES = 4
"""Chunks are little-endian float32."""

CHUNK_BYTES, LARGE_CHUNK_BYTES = 1 << 18, 3 << 17
"""Of one chunk at most, in small segments and in large ones: small beside what a link has underway, large
beside what a frame costs, and what an operation on it needs stays in a processor's cache."""

CHUNKS = 128
"""Into so many a segment is cut before its chunks get larger: a round ends with one chunk's way round, which
has to be short beside it."""

Payload = bytes | bytearray | memoryview
Chunk = np.ndarray[Any, np.dtype[np.float32]]


def chunk_count(elements: int, ways: int) -> int:
    """Chunks that a segment is cut into: as many for each way."""
    size_bytes = elements * ELEMENT_BYTES
    most_bytes = min(LARGE_CHUNK_BYTES, max(CHUNK_BYTES, size_bytes // CHUNKS))
    return ways * max(1, -(-size_bytes // (ways * most_bytes)))


def vector(elements: int) -> Tensor:
    """Memory for `gather`: shape (elements,), float32, CPU, contiguous, not yet filled.

    Allocated by numpy, which asks for large pages: filling it for the first time is several times as fast.
    """
    return torch.from_numpy(np.empty(elements, dtype=np.float32))


def gather(
    params: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    names: Sequence[str],
    into: Tensor | None = None,
) -> Tensor:
    """The named floating-point tensors, one after another, in the order of `names`.

    Args:
        into: memory that `vector` made for them; new memory where it is left out.
    Returns:
        Shape (elements,), float32, CPU, contiguous.
    Raises:
        OurFault: a name that is neither a parameter nor a buffer.
        JobError: one of our own tensors is not finite; the message names it.
    """
    found = _averaged(params, buffers, names)
    flat = vector(sum(tensor.numel() for _, tensor in found)) if into is None else into
    offset = 0
    for name, tensor in found:
        part = flat[offset : offset + tensor.numel()]
        part.copy_(tensor.detach().reshape(-1))
        _refuse_diverged(name, part)
        offset += tensor.numel()
    return flat


def elements(params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], names: Sequence[str]) -> int:
    """Length of the vector that `gather` makes of them."""
    return sum(tensor.numel() for _, tensor in _averaged(params, buffers, names))


def check_finite(params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], names: Sequence[str]) -> None:
    """As `gather` checks, for a segment that no other cluster holds.

    Raises:
        JobError: one of our own tensors is not finite; the message names it.
    """
    for name, tensor in _averaged(params, buffers, names):
        _refuse_diverged(name, tensor.detach())


@torch.no_grad()
def scatter(
    flat: Tensor,
    params: Mapping[str, Tensor],
    buffers: MutableMapping[str, Tensor],
    names: Sequence[str],
) -> None:
    """Write a vector that `gather` laid out back: parameters in place, buffers as new entries of `buffers`.

    Graphs of crossing micro-batches are alive while clusters average. They hold ŵ, so parameters may change
    in place; but they hold the buffers themselves, and those must not change under them.

    Raises:
        OurFault: `flat` is not as long as the named tensors.
    """
    for name, tensor, part in parts(flat, params, buffers, names):
        if name in params:
            tensor.copy_(part)
        else:
            buffers[name] = renewed(tensor, part)


def parts(
    flat: Tensor, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], names: Sequence[str]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each of the named tensors, and its part of the vector, as a view of the same shape.

    Raises:
        OurFault: `flat` is not as long as the named tensors.
    """
    found = _averaged(params, buffers, names)
    wanted = sum(tensor.numel() for _, tensor in found)
    if flat.numel() != wanted:
        raise OurFault(f"vector of {flat.numel()} elements for tensors of {wanted}")
    offset = 0
    for name, tensor in found:
        yield name, tensor, flat[offset : offset + tensor.numel()].view(tensor.shape)
        offset += tensor.numel()


def renewed(buffer: Tensor, part: Tensor) -> Tensor:
    """A buffer with these values, in memory of its own."""
    return part.to(device=buffer.device, dtype=buffer.dtype, copy=True)


class SegmentValues:
    """The arithmetic of `core.rings.round` on a vector that `gather` made.

    A chunk underway is a float32 array of its own; what arrives is added to in place. Nothing of the vector
    changes before `hold`, which puts the mean in the own part's place.

    Args:
        flat: shape (elements,), float32, CPU, contiguous, finite.
        chunks: nearly equal parts that it is cut into.
        bound: how far means may be from the own parts; anywhere, where it is None.
    Attributes:
        digests: of what each chunk became.
    """

    def __init__(self, flat: Tensor, chunks: int, bound: MeanBound | None = None) -> None:
        self.chunks = chunks
        self._bound = bound
        self.digests = ChunkDigests(chunks)
        self._own = [flat.numpy()[start:stop] for start, stop in chunk_bounds(flat.numel(), chunks)]

    def received(self, chunk: int, payload: Payload, dtype: str = "float32") -> Chunk:
        """A chunk as it came: little-endian bytes.

        Raises:
            ChunkMismatchError: no such chunk, or another dtype or length than ours has.
        """
        if not 0 <= chunk < len(self._own):
            raise ChunkMismatchError(f"chunk {chunk} of {len(self._own)}")
        wanted, length = self._own[chunk].nbytes, memoryview(payload).nbytes
        if dtype != "float32" or length != wanted:
            raise ChunkMismatchError(f"a chunk of {length} bytes of {dtype}, not {wanted} of float32")
        return np.frombuffer(payload, dtype="<f4")

    def part(self, chunk: int, share: float) -> Chunk:
        """The own part times its share, new memory."""
        own = self._own[chunk]
        return own * np.float32(share) if share else np.zeros_like(own)

    def add(self, chunk: int, share: float, sums: Sequence[Chunk]) -> Chunk:
        """The sums, in this order, and then the own part times its share.

        Raises:
            NonFiniteError: NaN or infinity, in one of them or in what comes out.
        """
        if not sums:
            return self.part(chunk, share)
        first, *rest = sums
        total = first if first.flags.writeable else first.copy()
        with np.errstate(over="ignore", invalid="ignore"):
            for one in rest:
                total += one
            if share:
                total += self._own[chunk] * np.float32(share)
        refuse_non_finite(total)
        return total

    def hold(self, chunk: int, mean: Chunk) -> Chunk:
        """Put the mean in the own part's place; returns that place, from which it is handed on.

        Raises:
            NonFiniteError: NaN or infinity; the own part is unchanged.
            OutOfBoundsError: it is too far from the own part, which is unchanged.
        """
        refuse_non_finite(mean)
        own = self._own[chunk]
        if self._bound is not None:
            self._bound.check(chunk, own, mean)
        own[:] = mean
        self.digests.note(chunk, own)
        return own


def view(chunk: Chunk) -> memoryview:
    """Bytes of a chunk, sharing memory with it: what a link sends."""
    return chunk.view(np.uint8).data  # a memoryview's own cast refuses a chunk without elements


def _refuse_diverged(name: str, values: Tensor) -> None:
    flat = values.reshape(-1)
    # A sum of squares takes a quarter of the time, and may overflow where no value does.
    if not torch.isfinite(torch.dot(flat, flat)) and not torch.isfinite(flat).all():
        raise JobError(
            f"training diverged: {name!r} is not finite; lower the learning rate or clip gradients"
        )


def _averaged(
    params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], names: Sequence[str]
) -> list[tuple[str, Tensor]]:
    found = []
    for name in names:
        tensor = params[name] if name in params else buffers.get(name)
        if tensor is None:
            raise OurFault(f"{name!r} is neither a parameter nor a buffer of this stage")
        if tensor.is_floating_point():
            found.append((name, tensor))
    return found


def refuse_non_finite(values: Chunk) -> None:
    """Look for NaN and infinity.

    Raises:
        NonFiniteError: there is one.
    """
    # One pass without memory of its own; a sum of squares may overflow where no value does.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.dot(values, values)):
            return
    finite = np.isfinite(values)
    if not finite.all():
        raise NonFiniteError(f"a chunk whose element {int(finite.argmin())} is, or becomes, not finite")
