"""What a user asks for: a model, its data, a loss, an optimizer and a few numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict, Union

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ravnest_p2p.core.averaging import AUTO as AUTO_AVERAGING
from ravnest_p2p.core.averaging import FIXED, NONE
from ravnest_p2p.core.errors import ConfigError
from ravnest_p2p.core.pipeline.correction import SPECULATIVE
from ravnest_p2p.core.pipeline.nonfinite import SKIP
from ravnest_p2p.core.pipeline.window import MEASURED
from ravnest_p2p.core.planning.overlap import NEVER as NEVER_BESIDE
from ravnest_p2p.core.planning.recompute import ALWAYS, AUTO, NEVER
from ravnest_p2p.core.robust import MEAN
from ravnest_p2p.core.types import OptimizerSpec

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ravnest_p2p.model.package import Package

Array = Union[Tensor, "np.ndarray[Any, Any]"]
Data = Union[Sequence[Array], "Dataset[Any]"]


class Common(TypedDict, total=False):
    """Numbers that every optimizer takes, by keyword.

    Attributes:
        clip_norm: largest norm of the gradient; None, the default, does not clip.
        clip_scope: of which gradient: "stage", the default, each stage's by itself; or "model", the whole
            model's, of which stages after the first know the part before them from the update before.
        warmup_updates: updates over which the learning rate rises linearly to `lr`; 0.
        schedule: afterwards "constant", the default; "linear" or "cosine" down to 0 at update
            `schedule_updates`; or "step", times `schedule_factor` after every `schedule_updates` updates.
        schedule_updates: 0 stands for the job's last update; "step" needs it.
        schedule_factor: 0.1.
        decay_vectors: whether biases and norms (fewer than two dimensions) decay too; True, for LAMB False.
        no_decay: patterns of the names of parameters that do not decay, such as ("*.embed.*",).
    """

    clip_norm: float | None
    clip_scope: str
    warmup_updates: int
    schedule: str
    schedule_updates: int
    schedule_factor: float
    decay_vectors: bool
    no_decay: Sequence[str]


def SGD(
    lr: float, momentum: float = 0.0, weight_decay: float = 0.0, **common: Unpack[Common]
) -> OptimizerSpec:
    """As `torch.optim.SGD`."""
    return _spec("sgd", common, lr=lr, momentum=momentum, weight_decay=weight_decay)


def Adam(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    **common: Unpack[Common],
) -> OptimizerSpec:
    """As `torch.optim.Adam`."""
    return _spec("adam", common, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


def AdamW(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    **common: Unpack[Common],
) -> OptimizerSpec:
    """As `torch.optim.AdamW`."""
    return _spec("adamw", common, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


def Muon(
    lr: float = 2e-2,
    momentum: float = 0.95,
    weight_decay: float = 0.0,
    adamw_lr: float = 3e-4,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-10,
    **common: Unpack[Common],
) -> OptimizerSpec:
    """As `torch.optim.Muon` for the model's hidden matrices, AdamW for all else.

    Hidden matrices are weights of two dimensions that only matrix products read, neither in the first layer
    (what no earlier weight leads to) nor in the last (what leads to no later one).

    Args:
        lr, momentum: of the hidden matrices.
        adamw_lr, betas, eps: of embeddings, heads, biases, norms, convolutions.
        weight_decay: of both.
    """
    numbers = {"momentum": momentum, "weight_decay": weight_decay, "adamw_lr": adamw_lr}
    return _spec("muon", common, lr=lr, betas=betas, eps=eps, **numbers)


def LAMB(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 1e-2,
    **common: Unpack[Common],
) -> OptimizerSpec:
    """Adam's direction, each tensor's step as long as the tensor times `lr` (arXiv 1904.00962).

    What does not decay is not scaled by its length either: biases and norms, unless `decay_vectors` is True.
    """
    return _spec(
        "lamb", {"decay_vectors": False, **common}, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay
    )


def _spec(name: str, common: Common, **own: Any) -> OptimizerSpec:
    numbers: dict[str, Any] = {**common, **own}
    unknown = sorted(common.keys() - Common.__optional_keys__)
    if unknown:
        raise TypeError(f"{name} takes no {', '.join(unknown)}")
    patterns = numbers.pop("no_decay", ())
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    return OptimizerSpec(name, no_decay=patterns, **numbers)


@dataclass(frozen=True)
class JobRequest:
    """A training job as its user states it.

    Attributes:
        model: in the state to start from; called as `model(*inputs)`. It is only read. Or a `Package` that
            was captured before, of one micro-batch, with its loss inside.
        data: columns of equal length, inputs first and labels last (tensors or numpy arrays; float64 becomes
            float32, integer labels int64), or a `torch.utils.data.Dataset` of such rows.
        loss: `loss(output, *labels)` gives a scalar mean over the micro-batch; None where the model itself
            takes inputs and labels and returns the loss. Not looked at where `model` is a `Package`.
        labels: how many of the columns, from the last one, are labels.
        passes: times that every sample is trained.
        microbatch_size: samples in a micro-batch.
        microbatches_per_update: m; at least twice the pipeline's staleness trains best.
        updates_per_round: κ, updates between two averagings of the clusters.
        staleness_bound: upper bound on any stage's staleness τ; 0 is synchronous training, None stands for
            half of m, beyond which training needs more samples for the same loss.
        staleness: how τ is chosen within the bound. "measured": as little as keeps every stage busy, from
            what computations and messages take, again for every update; "adaptive": that, and no more than
            the paper's K^¼ after K updates; "fixed": what the plan predicts, for results that do not depend
            on timing.
        name: shown to people.
        stages, clusters: wanted numbers; 0 lets the planner choose.
        seed: of the order of the samples, and of dropout.
        precision: "fp32", or "bf16": matrix products and convolutions in bfloat16, as torch.autocast does
            it; weights, their gradients and the optimizer stay in float32.
        checkpoint: whether stages compute their activations again in the backward pass instead of keeping
            them, which takes less memory, a third more work, and gives the same numbers: True for all,
            False for none, "auto" for those that do not fit their peer otherwise. Unless it is False, the
            others make what costs a few percent again, where their memory is not ample.
        compression: of activations and gradients between stages: "none", "fp16", "bf16", "int8", "int4", or
            "auto": each link and direction takes the weakest with which it keeps up with the computation.
        staleness_correction: what micro-batches that start before an update and end after it run on:
            "speculative", the optimizer's own next step computed early; "stash", a copy of the weights
            before the update; "none", the weights as they are at each moment. The latter two train worse,
            and are for comparisons.
        nonfinite: what is done about a micro-batch whose loss, activation or gradient is NaN or infinite:
            "skip" leaves it out, at all stages, and counts it, until it happens too often; "stop" ends the
            job at the first.
        overlap: whether clusters go on with the next round's updates while they average: "never" stops for
            it; "auto" goes on where that saves time, by as many updates as the averaging is predicted to
            take; "always" in any case. The mean is then taken that many updates late, which costs quality.
        kappa: "fixed" averages after every `updates_per_round` updates; "adaptive" begins so, and averages
            more rarely as clusters stay close and as averaging costs, found while they train.
        averaging: what clusters send each other: "parameters", four bytes each, around rings; or what they
            learned since the last mean: "differences", exact, or in the few bytes of "fp16", "int8", "int4"
            or "sparse" (one value of 32, in two bits). What a codec loses of one round goes with the next.
            "auto" is "int8" where κ is adaptive or there is an outer optimizer, else "parameters".
        means: how contributions become one: "mean"; or one that liars among three or more clusters cannot
            move far: "trimmed" leaves out the extremes of each value, "clipped" cuts what is far from most.
        outer: what is done with the mean of the differences: "none" takes it as it is, "sgd" and "nesterov"
            step with it.
        outer_lr, outer_momentum: of these; DiLoCo's are 0.7 and 0.9.
        average_momentum: average the optimizer's mean gradients too, so that all go on in the same direction;
            twice the bytes.
    """

    model: nn.Module | Package
    data: Data
    loss: Callable[..., Tensor] | None = torch.nn.functional.cross_entropy
    optimizer: OptimizerSpec = field(default_factory=AdamW)
    labels: int = 1
    passes: int = 1
    microbatch_size: int = 16
    microbatches_per_update: int = 4
    updates_per_round: int = 10
    staleness_bound: int | None = None
    staleness: str = MEASURED
    name: str = ""
    stages: int = 0
    clusters: int = 0
    seed: int = 0
    precision: str = "fp32"
    checkpoint: bool | str = AUTO
    compression: str = "none"
    staleness_correction: str = SPECULATIVE
    nonfinite: str = SKIP
    overlap: str = NEVER_BESIDE
    kappa: str = FIXED
    averaging: str = AUTO_AVERAGING
    means: str = MEAN
    outer: str = NONE
    outer_lr: float = 1.0
    outer_momentum: float = 0.0
    average_momentum: bool = False

    @property
    def checkpoint_word(self) -> str:
        """`checkpoint` as the manifest has it.

        Raises:
            ConfigError: it is neither True, False nor "auto".
        """
        if isinstance(self.checkpoint, bool):
            return ALWAYS if self.checkpoint else NEVER
        if self.checkpoint != AUTO:
            raise ConfigError(f'checkpoint must be True, False or "auto", not {self.checkpoint!r:.40}')
        return AUTO
