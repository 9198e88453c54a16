"""What a stage takes of a peer's memory.

Problem: a worker that runs out of memory breaks its generation, and the planner must know before it starts.
Solution: count the copies of the parameters that asynchronous training holds and the activations of a full
window, times the measured ratio of resident size to tensor bytes, plus what a worker takes before any tensor.

Source: docs/design, "How a model travels" (resident size 1.25–1.57 × tensor bytes; budget 1.6 ×).
"""

from __future__ import annotations

from typing import NamedTuple

from ravnest_p2p.core.pipeline.correction import SPECULATIVE, correction_bytes
from ravnest_p2p.core.types import OptimizerSpec

PROCESS_OVERHEAD_BYTES = 300 * 1024 * 1024
"""Resident size of a worker that has imported torch and holds no tensor yet."""


def tensor_room_bytes(memory_bytes: float) -> float:
    """Tensors for which a peer's memory suffices, the inverse of `StageMemory.needed`."""
    return max(0.0, memory_bytes - PROCESS_OVERHEAD_BYTES) * 5.0 / 8.0


def optimizer_slots(optimizer: OptimizerSpec) -> int:
    """Copies of the parameters that the optimizer keeps as its state, at most.

    Muon keeps one of its matrices and two of the rest. How much of a stage is matrices is not known here, and
    the second copy covers the products in which it works.
    """
    if optimizer.name == "sgd":
        return 1 if optimizer.momentum else 0
    return 2


def speculative_copies(staleness: int, microbatches_per_update: int, last: bool) -> int:
    """Copies ŵ alive at once: none without staleness; two where a window outlives half an update."""
    if last or staleness == 0:
        return 0
    return 2 if microbatches_per_update < 2 * staleness else 1


def carried_versions(staleness: int, microbatches_per_update: int) -> int:
    """Versions of a carried parameter among the micro-batches in flight.

    An update makes two, ŵ and the stepped one; a window that outlives half an update reaches over three.
    """
    if staleness == 0:
        return 1
    return 3 if microbatches_per_update < 2 * staleness else 2


class StageMemory(NamedTuple):
    """A stage's memory by what it is for, bytes.

    Attributes:
        weights: parameters and buffers.
        gradients: the sums of one update.
        optimizer: state that the optimizer keeps.
        speculative: the copies ŵ that crossing micro-batches run on, in bfloat16.
        momentary: of a backward pass, the micro-batch's own gradients before they are added, as far as they
            take more than its activations, which are gone by then.
        activations: of all micro-batches in flight, and of the stretch that is recomputed.
        carried: the versions of parameters that cross the stage's cuts, and one gradient of them.
        averaging: the copies in which rounds of averaging work, beside training.
    """

    weights: int
    gradients: int
    optimizer: int
    speculative: int
    momentary: int
    activations: int
    carried: int
    averaging: int = 0

    @property
    def tensors(self) -> int:
        """Bytes of all tensors together."""
        return sum(self)

    @property
    def needed(self) -> int:
        """What the stage takes of a peer: the tensors as resident size, and the worker itself."""
        return (self.tensors * 8 + 4) // 5 + PROCESS_OVERHEAD_BYTES


def stage_memory(
    *,
    param_bytes: int,
    activation_bytes: int,
    optimizer: OptimizerSpec,
    staleness: int,
    microbatches_per_update: int,
    last: bool,
    recomputed_bytes: int = 0,
    carried_bytes: int = 0,
    correction: str = SPECULATIVE,
    averaging_copies: int = 0,
) -> StageMemory:
    """Memory of a stage; it never shrinks when an argument grows.

    Args:
        param_bytes: parameters and buffers of the stage's layers.
        activation_bytes: held by its layers for one micro-batch between forward and backward, in bf16 with
            the copies of the weights that autocast makes.
        staleness: τ; τ + 1 micro-batches are in flight.
        microbatches_per_update: m.
        last: the last stage needs no ŵ.
        recomputed_bytes: beside those of the window, held during a backward.
        carried_bytes: parameters that the stage receives, or sends for later stages to use.
        correction: what crossing micro-batches run on.
        averaging_copies: of the parameters (`core.averaging.copies`).
    """
    return StageMemory(
        weights=param_bytes,
        gradients=param_bytes,
        optimizer=param_bytes * optimizer_slots(optimizer),
        speculative=correction_bytes(correction, param_bytes, carried_bytes)
        * speculative_copies(staleness, microbatches_per_update, last),
        momentary=max(0, param_bytes - activation_bytes - recomputed_bytes),
        activations=activation_bytes * (staleness + 1) + recomputed_bytes,
        carried=carried_bytes * (carried_versions(staleness, microbatches_per_update) + 1),
        averaging=param_bytes * averaging_copies,
    )


def stage_memory_bytes(
    *,
    param_bytes: int,
    activation_bytes: int,
    optimizer: OptimizerSpec,
    staleness: int,
    microbatches_per_update: int,
    last: bool,
    recomputed_bytes: int = 0,
    carried_bytes: int = 0,
    correction: str = SPECULATIVE,
) -> int:
    """Memory that a stage needs on its peer, bytes; see `stage_memory`."""
    return stage_memory(
        param_bytes=param_bytes,
        activation_bytes=activation_bytes,
        optimizer=optimizer,
        staleness=staleness,
        microbatches_per_update=microbatches_per_update,
        last=last,
        recomputed_bytes=recomputed_bytes,
        carried_bytes=carried_bytes,
        correction=correction,
    ).needed
