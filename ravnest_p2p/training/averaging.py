"""Parameters as one flat vector that a ring can cut, add up and write back.

Problem: a ring averages a segment: some parameters and buffers, of many shapes, that its members all hold.
It has to move them as equal chunks, without copying them again, and must never let one member's NaN, or a
chunk of another size, into everybody's model. Solution: `gather` lays the named tensors one after another in
one float32 vector, chunks are byte views of it, every received chunk is checked before it is added, and
`scatter` writes the vector back. Integer buffers (BatchNorm's count) are not averaged.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ravnest_p2p.core.errors import ChunkMismatchError, JobError, NonFiniteError, OurFault
from ravnest_p2p.core.rings import chunk_bounds

ELEMENT_BYTES = 4
"""Chunks are little-endian float32."""

_CHECKED = 1 << 16
"""Elements that are checked at once."""

Payload = bytes | bytearray | memoryview


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
    found = _averaged(params, buffers, names)
    wanted = sum(tensor.numel() for _, tensor in found)
    if flat.numel() != wanted:
        raise OurFault(f"vector of {flat.numel()} elements for tensors of {wanted}")
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


def cut(flat: Tensor, members: int) -> list[Tensor]:
    """The chunks of a ring of `members`, in order, sharing memory with `flat`."""
    return [flat[start:stop] for start, stop in chunk_bounds(flat.numel(), members)]


def view(chunk: Tensor) -> memoryview:
    """Bytes of a chunk, sharing memory with it: what a link sends."""
    return chunk.numpy().data.cast("B")


def accumulate(chunk: Tensor, payload: Payload, dtype: str = "float32") -> None:
    """Add a received chunk to ours, in place.

    Args:
        chunk: part of a vector of `gather`: shape (elements,), float32, CPU, contiguous, finite.
        payload: little-endian bytes of as many elements.
        dtype: as the frame names it.
    Raises:
        ChunkMismatchError: another dtype or length than ours has; ours is unchanged.
        NonFiniteError: NaN or infinity, in the payload or in the sum; ours is unchanged.
    """
    mine, theirs = chunk.numpy(), _received(chunk, payload, dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        for part in _parts(chunk):
            _refuse_non_finite(mine[part] + theirs[part], part.start)
    np.add(mine, theirs, out=mine)


def replace(chunk: Tensor, payload: Payload, dtype: str = "float32") -> None:
    """Put a received, complete chunk in the place of ours; arguments and errors as `accumulate`."""
    theirs = _received(chunk, payload, dtype)
    for part in _parts(chunk):
        _refuse_non_finite(theirs[part], part.start)
    chunk.numpy()[:] = theirs


def _refuse_diverged(name: str, values: Tensor) -> None:
    if not torch.isfinite(values).all():
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


def _received(chunk: Tensor, payload: Payload, dtype: str) -> np.ndarray:
    wanted = chunk.numel() * ELEMENT_BYTES
    length = memoryview(payload).nbytes
    if dtype != "float32" or length != wanted:
        raise ChunkMismatchError(f"a chunk of {length} bytes of {dtype}, not {wanted} of float32")
    return np.frombuffer(payload, dtype="<f4")


def _parts(chunk: Tensor) -> list[slice]:
    """A chunk is checked in parts, which need no memory of its size."""
    return [slice(start, start + _CHECKED) for start in range(0, chunk.numel(), _CHECKED)]


def _refuse_non_finite(values: np.ndarray, start: int) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        element = start + int(finite.argmin())
        raise NonFiniteError(f"a chunk whose element {element} is, or becomes, not finite")
