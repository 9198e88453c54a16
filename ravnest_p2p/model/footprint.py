"""How many bytes of tensors a stage holds, and at most: exact, without allocating any of them.

Problem: what autograd keeps, shares and drops follows from every operation's backward formula, which no list
of ours could repeat. Solution: run the stage's forward and backward on fake tensors, and count the storages
that are alive after every operation. The same meter on real tensors gives the truth to compare with.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ravnest_p2p.model.abstract import computing_in, fake_mode
from ravnest_p2p.model.compute import StageComputation
from ravnest_p2p.model.node import TensorSpec
from ravnest_p2p.model.stage_programs import StageProgram


class NoBackward(RuntimeError):
    """The backward pass of a stage cannot be run."""


Make = Callable[[TensorSpec], Tensor]


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of one micro-batch on one stage.

    Attributes:
        weight_bytes: parameters and buffers.
        held_bytes: between forward and backward: what autograd saved, what was received and what was sent.
        peak_bytes: most at any moment beside the weights, gradients included.
    """

    weight_bytes: int
    held_bytes: int
    peak_bytes: int


class StorageMeter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that are made while it is on, until they are freed.

    Args:
        known: tensors whose storages are not counted.
        device: whose memory to count; None counts all.

    Attributes:
        bytes, peak_bytes: alive now, and most at once.
    """

    def __init__(self, known: Iterable[Tensor] = (), device: torch.device | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._type = None if device is None else device.type
        self.bytes = 0
        self.peak_bytes = 0
        self._alive = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(hasattr(kind, "__tensor_flatten__") for kind in types):
            # What holds other tensors inside does the operation on these, and that is what is counted.
            return NotImplemented
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                self.add(value)
        return result

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage from now on, once."""
        if self._type is not None and tensor.device.type != self._type:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        self._alive.add(key)
        size = storage.nbytes()
        self.bytes += size
        self.peak_bytes = max(self.peak_bytes, self.bytes)
        weakref.finalize(storage, self._freed, key, size).atexit = False

    def _freed(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.bytes -= size


def footprint(
    stage: StageProgram,
    make: Make | None = None,
    *,
    recompute: Sequence[int] | None = None,
    remake: bool = True,
) -> Footprint:
    """Run one micro-batch forward and backward, in the precision of the program's analysis; count storages.

    Args:
        make: gives each tensor that the stage starts from; fake ones without numbers where None.
        recompute, remake: as of `StageComputation`.
    Raises:
        NoBackward: an operation has no backward pass, or none on fake tensors.
    """
    with fake_mode() if make is None else nullcontext():
        return _run(stage, _empty if make is None else make, recompute, remake)


def _empty(spec: TensorSpec) -> Tensor:
    return torch.empty(spec.shape, dtype=spec.torch_dtype)


def _run(stage: StageProgram, make: Make, recompute: Sequence[int] | None, remake: bool) -> Footprint:
    params = {name: make(stage.tensor_spec(name)).requires_grad_() for name in stage.params}
    buffers = {name: make(stage.tensor_spec(name)) for name in stage.buffers}
    weights = [*params.values(), *buffers.values()]
    data = {name: make(stage.tensor_spec(name)) for name in stage.data_inputs}
    meter = StorageMeter([*weights, *data.values()])
    with meter:
        received = [make(spec).requires_grad_(spec.differentiable) for spec in stage.receives]
        for tensor in received:
            meter.add(tensor)
        computation = StageComputation(stage, reseed=False, recompute=recompute, remake=remake)
        with computing_in(stage.program.analysis.precision):
            sent = computation.forward(params, buffers, received, data, 0)
        held = meter.bytes
        roots = [t for t in sent if t.requires_grad]
        seeds = [torch.empty_like(t).fill_(1) for t in roots]
        wanted = [*params.values(), *(t for t in received if t.requires_grad)]
        gradients = _gradients(roots, wanted, seeds)
        peak = meter.peak_bytes
    del gradients
    return Footprint(_bytes(weights), held, peak)


def _gradients(roots: Sequence[Tensor], wanted: Sequence[Tensor], seeds: Sequence[Tensor]) -> Any:
    if not roots or not wanted:
        return ()
    try:
        return torch.autograd.grad(roots, wanted, seeds, allow_unused=True)
    except RuntimeError as error:
        # Torch has no narrower error for a missing derivative, or for one that shapes do not tell of.
        raise NoBackward(str(error)) from error


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())
