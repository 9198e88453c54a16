"""What crosses a stage boundary in one direction, packed with the codecs that the job allows.

A frame's header names one codec for all of it. Encoded are float32 tensors of some size; everything else
crosses exactly: integers, small tensors, and weights, of which both stages must hold the same. A frame with
a value that the codec cannot hold crosses exactly as well, so that NaN arrives as NaN.

With 4 bits the ends remember what helps the next frame: of activations what is alike in all of them; of a
parameter's gradients, which are added up over micro-batches, what was lost. Frames come in order and once,
so both ends know the same.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from ravnest_p2p.core import compression
from ravnest_p2p.core.errors import ChunkMismatchError
from ravnest_p2p.daemon.worker.tensors import pack, unpack
from ravnest_p2p.model import TensorSpec
from ravnest_p2p.training.codecs import Feedback, Int4, Predicted, codec_of, predictable

Payload = bytes | bytearray | memoryview
CODEC = "c"
"""Key of a frame's header; a frame without it is exact."""


class Crossing:
    """One direction of a link. Both ends make one; `summed` and `seed` matter to the sender alone.

    `pack` and `unpack` are called by one thread at a time.

    Args:
        specs: of all that may cross, in order.
        allowed: codecs that frames may name, as `core.compression.allowed` has it.
        exact: places that are never encoded.
        predicted: what crosses resembles what crossed before: activations do, gradients do not.
        summed: places whose tensors the receiver adds up.
        seed: of the chance by which 4 bits are rounded.
    """

    def __init__(
        self,
        specs: Sequence[TensorSpec],
        allowed: Sequence[str],
        *,
        exact: Collection[int] = (),
        predicted: bool = False,
        summed: Collection[int] = (),
        seed: int = 0,
    ) -> None:
        self._specs = specs
        self._allowed = tuple(allowed)
        self._encoded = frozenset(
            place
            for place, spec in enumerate(specs)
            if spec.dtype == "float32" and spec.nbytes >= compression.LEAST_BYTES and place not in exact
        )
        self._codecs = {name: codec_of(name, seed) for name in allowed if name != compression.NONE}
        four = self._codecs.get(compression.INT4)
        self._memories: dict[int, Feedback | Predicted] = {}
        if isinstance(four, Int4):
            for place in sorted(self._encoded):
                if place in summed:
                    self._memories[place] = Feedback(four)
                elif predicted and predictable(specs[place].shape):
                    self._memories[place] = Predicted(four, specs[place].shape)

    @property
    def count(self) -> int:
        """Tensors that may cross."""
        return len(self._specs)

    @property
    def codecs(self) -> tuple[str, ...]:
        """Worth choosing from, weakest first; only "none" where nothing is large enough to encode."""
        return self._allowed if self._encoded else (compression.NONE,)

    def nbytes(self, name: str, places: Sequence[int] | None = None) -> int:
        """Size of a frame of the tensors at these places (by default all) in this codec."""
        chosen = range(len(self._specs)) if places is None else places
        return sum(self._size(name, place) for place in chosen)

    def pack(
        self, name: str, tensors: Sequence[Tensor], places: Sequence[int] | None = None
    ) -> tuple[str, list[memoryview]]:
        """The tensors of these places (by default all) as bytes, and the codec that was used."""
        chosen = range(len(self._specs)) if places is None else places
        if name == compression.NONE:
            return name, pack(tensors)
        buffers: list[Tensor] = []
        memories: list[Feedback | Predicted] = []
        for place, tensor in zip(chosen, tensors, strict=True):
            data: Tensor | None = tensor
            if place in self._encoded:
                flat = tensor.detach().cpu().contiguous().view(-1)
                memory = self._memory(name, place)
                data = memory.encode(flat) if memory else self._codecs[name].encode(flat)
                memories += [memory] if memory else []
            if data is None:
                return compression.NONE, pack(tensors)
            buffers.append(data)
        for memory in memories:
            memory.sent()
        return name, pack(buffers)

    def named(self, header: dict[str, Any]) -> str:
        """The codec that a received frame names.

        Raises:
            ChunkMismatchError: the job does not allow it (remote's fault).
        """
        name = header.get(CODEC, compression.NONE)
        if not isinstance(name, str) or name not in self._allowed:
            raise ChunkMismatchError(
                f"a frame names the codec {name!r:.40}, the job allows {', '.join(self._allowed)}"
            )
        return name

    def unpack(
        self, name: str, payload: Payload, places: Sequence[int] | None = None, *, what: str
    ) -> list[Tensor]:
        """The tensors of these places (by default all).

        Raises:
            ChunkMismatchError: the payload has another length (remote's fault).
            NonFiniteError: a scale that no encoder writes (remote's fault).
        """
        chosen = range(len(self._specs)) if places is None else places
        if name == compression.NONE:
            return unpack(payload, [self._specs[place] for place in chosen], what=what)
        sizes = [self._size(name, place) for place in chosen]
        parts = [
            TensorSpec((size,), "uint8") if place in self._encoded else self._specs[place]
            for place, size in zip(chosen, sizes, strict=True)
        ]
        tensors = unpack(payload, parts, what=f"{what} in {name}")
        for index, place in enumerate(chosen):
            if place in self._encoded:
                tensors[index] = self._decode(name, place, tensors[index]).view(self._specs[place].shape)
        return tensors

    def _decode(self, name: str, place: int, payload: Tensor) -> Tensor:
        elements = torch.Size(self._specs[place].shape).numel()
        memory = self._memory(name, place)
        if isinstance(memory, Predicted):
            return memory.decode(payload, elements)
        return self._codecs[name].decode(payload, elements)

    def _memory(self, name: str, place: int) -> Feedback | Predicted | None:
        return self._memories.get(place) if name == compression.INT4 else None

    def _size(self, name: str, place: int) -> int:
        spec = self._specs[place]
        if place not in self._encoded:
            return spec.nbytes
        return compression.encoded_bytes(name, torch.Size(spec.shape).numel())
