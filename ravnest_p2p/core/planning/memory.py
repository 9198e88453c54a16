"""What a stage takes of a peer's memory.

Problem: a worker that runs out of memory breaks its generation, and the planner must know before it starts.
Solution: count the copies of the parameters that asynchronous training holds and the activations of a full
window, times the measured ratio of resident size to tensor bytes, plus what a worker takes before any tensor.

Source: docs/design, "How a model travels" (resident size 1.25–1.57 × tensor bytes; budget 1.6 ×).
"""

from __future__ import annotations

from ravnest_p2p.core.types import OptimizerSpec

PROCESS_OVERHEAD_BYTES = 300 * 1024 * 1024
"""Resident size of a worker that has imported torch and holds no tensor yet."""


def optimizer_slots(optimizer: OptimizerSpec) -> int:
    """Copies of the parameters that the optimizer keeps as its state, at most.

    Muon keeps one of its matrices and two of the rest. How much of a stage is matrices is not known here, and
    the second copy covers the products in which it works.
    """
    if optimizer.name == "sgd":
        return 1 if optimizer.momentum else 0
    return 2


def speculative_copies(staleness: int, microbatches_per_update: int, last: bool) -> int:
    """Scratch copies ŵ alive at once: none on the last stage; two where a window outlives half an update."""
    if last:
        return 0
    return 2 if microbatches_per_update < 2 * staleness else 1


def stage_memory_bytes(
    *,
    param_bytes: int,
    activation_bytes: int,
    optimizer: OptimizerSpec,
    staleness: int,
    microbatches_per_update: int,
    last: bool,
    precision: str = "fp32",
) -> int:
    """Memory that a stage needs on its peer, bytes; grows with every argument.

    Args:
        param_bytes: parameters and buffers of the stage's layers.
        activation_bytes: held by its layers for one micro-batch between forward and backward.
        staleness: τ; τ + 1 micro-batches are in flight.
        microbatches_per_update: m.
        last: the last stage needs no ŵ.
        precision: with "bf16" each micro-batch in flight holds its own half-size copy of the weights; what
            it saves was measured as 0.66 of float32's for a GPT and an MLP, 1.06 for a small CNN.
    """
    weights_gradients_average = 3
    copies = (
        weights_gradients_average
        + optimizer_slots(optimizer)
        + speculative_copies(staleness, microbatches_per_update, last)
    )
    in_flight = activation_bytes
    if precision == "bf16":
        in_flight += activation_bytes // 8 + param_bytes // 2
    tensors = param_bytes * copies + in_flight * (staleness + 1)
    return (tensors * 8 + 4) // 5 + PROCESS_OVERHEAD_BYTES
