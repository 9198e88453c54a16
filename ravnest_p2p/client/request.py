"""What a user asks for: a model, its data, a loss, an optimizer and a few numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Union

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ravnest_p2p.core.types import OptimizerSpec

Array = Union[Tensor, "np.ndarray[Any, Any]"]
Data = Union[Sequence[Array], "Dataset[Any]"]


def SGD(
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    *,
    clip_norm: float | None = None,
    warmup_updates: int = 0,
    schedule: str = "constant",
    schedule_updates: int = 0,
) -> OptimizerSpec:
    """As `torch.optim.SGD`; see `AdamW` for the rest."""
    return OptimizerSpec(
        name="sgd",
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        warmup_updates=warmup_updates,
        schedule=schedule,
        schedule_updates=schedule_updates,
    )


def Adam(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    *,
    clip_norm: float | None = None,
    warmup_updates: int = 0,
    schedule: str = "constant",
    schedule_updates: int = 0,
) -> OptimizerSpec:
    """As `torch.optim.Adam`; see `AdamW` for the rest."""
    return OptimizerSpec(
        name="adam",
        lr=lr,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        warmup_updates=warmup_updates,
        schedule=schedule,
        schedule_updates=schedule_updates,
    )


def AdamW(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    *,
    clip_norm: float | None = None,
    warmup_updates: int = 0,
    schedule: str = "constant",
    schedule_updates: int = 0,
) -> OptimizerSpec:
    """As `torch.optim.AdamW`.

    Args:
        clip_norm: largest norm of a stage's gradient; None does not clip.
        warmup_updates: updates over which the learning rate rises linearly to `lr`.
        schedule: afterwards "constant", or "linear" or "cosine" down to 0 at update `schedule_updates`.
        schedule_updates: 0 stands for the job's last update.
    """
    return OptimizerSpec(
        name="adamw",
        lr=lr,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        warmup_updates=warmup_updates,
        schedule=schedule,
        schedule_updates=schedule_updates,
    )


@dataclass(frozen=True)
class JobRequest:
    """A training job as its user states it.

    Attributes:
        model: in the state to start from; called as `model(*inputs)`. It is only read.
        data: columns of equal length, inputs first and labels last (tensors or numpy arrays; float64 becomes
            float32, integer labels int64), or a `torch.utils.data.Dataset` of such rows.
        loss: `loss(output, *labels)` gives a scalar mean over the micro-batch; None where the model itself
            takes inputs and labels and returns the loss.
        labels: how many of the columns, from the last one, are labels.
        passes: times that every sample is trained.
        microbatch_size: samples in a micro-batch.
        microbatches_per_update: m; at least twice the pipeline's staleness trains best.
        updates_per_round: κ, updates between two averagings of the clusters.
        staleness_bound: upper bound on any stage's staleness τ; 0 is synchronous training, None stands for
            half of m, beyond which training needs more samples for the same loss.
        name: shown to people.
        stages, clusters: wanted numbers; 0 lets the planner choose.
        seed: of the order of the samples, and of dropout.
    """

    model: nn.Module
    data: Data
    loss: Callable[..., Tensor] | None = torch.nn.functional.cross_entropy
    optimizer: OptimizerSpec = field(default_factory=AdamW)
    labels: int = 1
    passes: int = 1
    microbatch_size: int = 16
    microbatches_per_update: int = 4
    updates_per_round: int = 10
    staleness_bound: int | None = None
    name: str = ""
    stages: int = 0
    clusters: int = 0
    seed: int = 0
