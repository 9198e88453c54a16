"""Parameters as one flat vector that a ring can cut, add up and write back.

Problem: a ring averages a segment: some parameters and buffers, of many shapes, that its members all hold.
It has to move them as equal chunks, without copying them again, and must never let one member's NaN, or a
chunk of another size, into everybody's model. Solution: `gather` lays the named tensors one after another in
one float32 vector, chunks are byte views of it, every received chunk is checked before it is added, and
`scatter` writes the vector back. Integer buffers (BatchNorm's count) are not averaged.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ravnest_p2p.core.errors import ChunkMismatchError, JobError, NonFiniteError, OurFault

ELEMENT_BYTES = 4
"""Chunks are little-endian float32."""

Bounds = tuple[int, int]
"""First and one past the last element of a chunk."""


def gather(params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """The named floating-point tensors, one after another, in the order of `names`.

    Returns:
        New tensor, shape (elements,), float32, CPU, contiguous.
    Raises:
        OurFault: a name that is neither a parameter nor a buffer.
        JobError: one of our own tensors is not finite; the message names it.
    """
    found = _averaged(params, buffers, names)
    flat = torch.empty(sum(tensor.numel() for _, tensor in found), dtype=torch.float32)
    offset = 0
    for name, tensor in found:
        part = flat[offset : offset + tensor.numel()]
        part.copy_(tensor.detach().reshape(-1))
        if not torch.isfinite(part).all():
            raise JobError(
                f"training diverged: {name!r} is not finite; lower the learning rate or clip gradients"
            )
        offset += tensor.numel()
    return flat


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
    found = _averaged(params, buffers, names)
    elements = sum(tensor.numel() for _, tensor in found)
    if flat.numel() != elements:
        raise OurFault(f"vector of {flat.numel()} elements for tensors of {elements}")
    offset = 0
    for name, tensor in found:
        part = flat[offset : offset + tensor.numel()].view(tensor.shape)
        offset += tensor.numel()
        if name in params:
            tensor.copy_(part)
        else:
            buffers[name] = part.to(device=tensor.device, dtype=tensor.dtype, copy=True)


def weighted(flat: Tensor, weight: float) -> Tensor:
    """Scale a vector in place by this member's share of the samples, and return it; the shares sum to 1."""
    return flat.mul_(weight)


def chunk_bounds(elements: int, chunks: int) -> list[Bounds]:
    """Cut `elements` into `chunks` runs whose lengths differ by one at most; the longer ones come first."""
    size, longer = divmod(elements, chunks)
    edges = [c * size + min(c, longer) for c in range(chunks + 1)]
    return list(pairwise(edges))


def chunk_view(flat: Tensor, bounds: Bounds) -> memoryview:
    """Bytes of one chunk, sharing memory with `flat`: what a link sends."""
    return _array(flat, bounds).data.cast("B")


def add_chunk(
    flat: Tensor, bounds: Bounds, payload: bytes | bytearray | memoryview, dtype: str = "float32"
) -> None:
    """Add a received chunk to ours, in place.

    Args:
        flat: shape (elements,), float32, CPU, contiguous, finite.
        dtype: as the frame names it.
    Raises:
        ChunkMismatchError: another dtype or length than this chunk has; ours is unchanged.
        NonFiniteError: NaN or infinity, in the chunk or in the sum; ours is unchanged.
    """
    ours = _array(flat, bounds)
    with np.errstate(over="ignore", invalid="ignore"):
        total = ours + _received(bounds, payload, dtype)
    _refuse_non_finite(bounds, total)
    ours[:] = total


def put_chunk(
    flat: Tensor, bounds: Bounds, payload: bytes | bytearray | memoryview, dtype: str = "float32"
) -> None:
    """Replace our chunk by a received, complete one, in place; arguments and errors as `add_chunk`."""
    theirs = _received(bounds, payload, dtype)
    _refuse_non_finite(bounds, theirs)
    _array(flat, bounds)[:] = theirs


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


def _array(flat: Tensor, bounds: Bounds) -> np.ndarray:
    return flat.numpy()[bounds[0] : bounds[1]]


def _received(bounds: Bounds, payload: bytes | bytearray | memoryview, dtype: str) -> np.ndarray:
    wanted = (bounds[1] - bounds[0]) * ELEMENT_BYTES
    length = memoryview(payload).nbytes
    if dtype != "float32" or length != wanted:
        raise ChunkMismatchError(f"chunk {bounds}: {length} bytes of {dtype}, not {wanted} of float32")
    return np.frombuffer(payload, dtype="<f4")


def _refuse_non_finite(bounds: Bounds, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        place = bounds[0] + int(np.flatnonzero(~np.isfinite(values))[0])
        raise NonFiniteError(f"chunk {bounds}: element {place} is not finite")
