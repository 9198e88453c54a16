"""Tensors to wire buffers and back, without copies where torch allows it.

What crosses a stage boundary is known from the stage's program, so a frame carries raw bytes only; the
receiver checks their number against the shapes it expects before it looks at them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ravnest_p2p.core.errors import ChunkMismatchError
from ravnest_p2p.model import TensorSpec


def pack(tensors: Sequence[Tensor]) -> list[memoryview]:
    """Byte views of the tensors in order; contiguous CPU ones are not copied."""
    return [t.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().data for t in tensors]


def unpack(
    payload: bytearray | bytes | memoryview, specs: Sequence[TensorSpec], *, what: str
) -> list[Tensor]:
    """Tensors of the given specs, over the payload's own memory where it is writable.

    Raises:
        ChunkMismatchError: the payload has another length (remote's fault).
    """
    sizes = [spec.nbytes for spec in specs]
    if sum(sizes) != len(payload):
        raise ChunkMismatchError(f"{what}: {len(payload)} bytes came where {sum(sizes)} belong")
    buffer = payload if isinstance(payload, bytearray) else bytearray(payload)
    tensors, offset = [], 0
    for spec, size in zip(specs, sizes, strict=True):
        if size:
            count = size // spec.torch_dtype.itemsize
            flat = torch.frombuffer(buffer, dtype=spec.torch_dtype, count=count, offset=offset)
            tensors.append(flat.view(spec.shape))
        else:
            tensors.append(torch.empty(spec.shape, dtype=spec.torch_dtype))
        offset += size
    return tensors
