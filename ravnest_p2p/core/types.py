"""The nouns of the swarm: ids, fencing numbers, capabilities, jobs, plans.

Plain frozen dataclasses with primitive fields: every layer above shares them, `network.records` checks and
encodes them for the wire, and the planner, the election and the simulator handle them as values.
Units are in the names (`_s`, `_bytes`, `_bps`, `_flops`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, NewType

PeerId = NewType("PeerId", str)
"""libp2p peer id, base58 text."""

JobId = NewType("JobId", str)
"""Hex SHA-256 of the job's manifest."""

BlobHash = NewType("BlobHash", str)
"""Hex SHA-256 of a blob's bytes."""

MICROBATCH_FLOPS = 1e16
"""Most operations of one micro-batch of a job that a peer takes part in, unless its owner says otherwise: a
model of 7 B parameters needs that for 240,000 tokens."""


class Fence(NamedTuple):
    """Fencing number: a peer obeys only a higher one than it has obeyed before."""

    epoch: int
    term: int


class Generation(NamedTuple):
    """Version of one job's membership: the fence of the plan that formed it, and that formation's digest.

    The digest keeps two leaders of a partition, who may use the same fence, from ever forming one pipeline.
    """

    epoch: int
    term: int
    tag: str

    def __str__(self) -> str:
        return f"{self.epoch}.{self.term}.{self.tag}"


class Reachability(str, Enum):
    PUBLIC = "public"
    PUNCHED = "punched"
    RELAYED = "relayed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Device:
    """One compute device that the owner lends.

    Attributes:
        kind: "cpu", "cuda" or "mps".
        memory_bytes: what a worker may use of it.
        flops: sustained float32 operations a second, measured.
    """

    kind: str
    memory_bytes: int
    flops: float


@dataclass(frozen=True, slots=True)
class Coordinate:
    """Vivaldi network coordinate; predicted round trip = distance of the vectors + both heights, seconds."""

    vector: tuple[float, ...]
    height_s: float
    error: float


@dataclass(frozen=True, slots=True)
class LinkMeasured:
    """What one peer measured of its link to another: bits a second there and back."""

    peer: PeerId
    up_bps: float
    down_bps: float


@dataclass(frozen=True, slots=True)
class Capability:
    """What one peer offers, as it publishes it.

    Attributes:
        microbatch_flops: most operations of one micro-batch, over all stages, of a job that it takes part in.
        measured: its newest links to others; these bound what they claim (`claims`).
    """

    peer: PeerId
    version: str
    devices: tuple[Device, ...]
    up_bps: float
    down_bps: float
    coordinate: Coordinate
    reachability: Reachability
    uptime_s: float
    reliability: float
    online: bool = True
    microbatch_flops: float = MICROBATCH_FLOPS
    measured: tuple[LinkMeasured, ...] = ()

    @property
    def memory_bytes(self) -> int:
        return max((d.memory_bytes for d in self.devices), default=0)

    @property
    def flops(self) -> float:
        return max((d.flops for d in self.devices), default=0.0)


@dataclass(frozen=True, slots=True)
class LayerCost:
    """Cost of one layer (the unit between two possible cuts), for one micro-batch.

    Attributes:
        flops: forward and backward.
        param_bytes: parameters and buffers.
        activation_bytes: held between forward and backward.
        out_bytes: crosses the cut after this layer, in each direction.
        carried_bytes: of `out_bytes`, parameters of layers up to this one that later layers use too.
        remade_bytes: of `activation_bytes`, what can be made again for a few percent of the work.
    """

    flops: float
    param_bytes: int
    activation_bytes: int
    out_bytes: int
    carried_bytes: int = 0
    remade_bytes: int = 0


@dataclass(frozen=True, slots=True)
class OptimizerSpec:
    """Optimizer by name and numbers; `core.optimizers` says what is allowed and what it means.

    Attributes:
        name: "sgd", "adam", "adamw", "muon" or "lamb".
        momentum: of SGD and Muon.
        betas, eps: of Adam, AdamW, LAMB, and of Muon's AdamW.
        clip_norm: largest norm of the gradient; None does not clip.
        clip_scope: of which gradient: "stage", each stage's by itself, or "model".
        schedule: after the warm-up: "constant"; "linear" or "cosine" down to 0 at update `schedule_updates`;
            or "step", times `schedule_factor` after every `schedule_updates` updates.
        adamw_lr: learning rate of what Muon leaves to AdamW; the schedule scales it as it does `lr`.
        decay_vectors: whether parameters of fewer than two dimensions (biases, norms) decay.
        no_decay: patterns, as of a shell's file names, of the names of parameters that do not decay.
    """

    name: str
    lr: float
    momentum: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = None
    warmup_updates: int = 0
    schedule: str = "constant"
    schedule_updates: int = 0
    schedule_factor: float = 0.1
    adamw_lr: float = 3e-4
    decay_vectors: bool = True
    no_decay: tuple[str, ...] = ()
    clip_scope: str = "stage"


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One column of the training data, cut into shards of whole rows.

    Attributes:
        name: the graph input that it feeds.
        role: "input" or "label".
        dtype: torch dtype name without prefix, such as "float32".
        shape: of one sample.
        shards: (blob, rows) in order; each blob is a safetensors file with the one tensor "rows".
    """

    name: str
    role: str
    dtype: str
    shape: tuple[int, ...]
    shards: tuple[tuple[BlobHash, int], ...]


@dataclass(frozen=True, slots=True)
class WeightsPart:
    """A blob of initial weights (safetensors) that is needed where any of layers [lo, hi) is trained.

    One blob may stand for several ranges of layers.
    """

    lo: int
    hi: int
    blob: BlobHash


@dataclass(frozen=True, slots=True)
class JobSpec:
    """A job's manifest: everything needed to plan and run it, with large parts named by hash.

    Attributes:
        program: blob of the captured train graph (JSON).
        weights: the initial weights, in parts by the layers that need them.
        layers: cost of each layer; stage cuts are indices into it.
        microbatch_size: samples in a micro-batch.
        microbatches_per_update: m.
        updates_per_round: κ; the least one where `kappa` is "adaptive".
        total_batches: batches (m micro-batches each) to train in all, over all clusters and passes.
        stages, clusters: wanted numbers; 0 lets the planner choose.
        staleness_bound: upper bound on τ of any stage; 0 is synchronous training.
        staleness: how τ is chosen within the bound: one of `core.pipeline.window.STALENESS_MODES`.
        precision: "fp32", or "bf16": products in bfloat16 from float32 weights, as torch.autocast has it.
        checkpoint: which stages compute their activations a second time instead of keeping them: "never",
            "auto" (those that do not fit their peer otherwise), or "always".
        compression: codec of what crosses from stage to stage, as in `core.compression`, or "auto".
        staleness_correction: what micro-batches that cross an update run on: `core.pipeline.correction`.
        nonfinite: what is done about NaN and infinity: `core.pipeline.nonfinite`.
        kappa: "fixed", or "adaptive": rounds are skipped as `core.cadence` says.
        averaging: what clusters send each other, of `core.averaging.AVERAGINGS`.
        means: how what they send becomes one, of `core.robust.MEANS`.
        outer, outer_lr, outer_momentum: what is done with the mean difference, of `core.averaging.OUTERS`.
        average_momentum: the optimizer's mean gradients are averaged too.
        overlap: whether clusters train beside a round of averaging: one of `core.planning.overlap.OVERLAPS`.
    """

    name: str
    program: BlobHash
    weights: tuple[WeightsPart, ...]
    fields: tuple[FieldSpec, ...]
    samples: int
    layers: tuple[LayerCost, ...]
    microbatch_size: int
    microbatches_per_update: int
    updates_per_round: int
    total_batches: int
    seed: int
    optimizer: OptimizerSpec
    stages: int = 0
    clusters: int = 0
    staleness_bound: int = 8
    staleness: str = "measured"
    precision: str = "fp32"
    checkpoint: str = "never"
    compression: str = "none"
    staleness_correction: str = "speculative"
    nonfinite: str = "skip"
    kappa: str = "fixed"
    averaging: str = "parameters"
    means: str = "mean"
    outer: str = "none"
    outer_lr: float = 1.0
    outer_momentum: float = 0.0
    average_momentum: bool = False
    overlap: str = "auto"

    def weights_of(self, lo: int, hi: int) -> list[BlobHash]:
        """Blobs of initial weights that a stage of layers [lo, hi) needs, each once."""
        return list(dict.fromkeys(part.blob for part in self.weights if part.lo < hi and lo < part.hi))


@dataclass(frozen=True, slots=True)
class Piece:
    """Saved state of layers [lo, hi) after an averaging: parameters, buffers, optimizer state.

    Attributes:
        batches_done: the job's batches that the state contains; pieces of one round share it.
        version: updates that the stage has applied.
        holders: peers that hold the blob.
    """

    lo: int
    hi: int
    batches_done: int
    version: int
    blob: BlobHash
    holders: tuple[PeerId, ...]


class JobPhase(str, Enum):
    WAITING = "waiting"
    RUNNING = "running"
    BROKEN = "broken"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class JobStatus:
    """What a planner knows of a job: its phase, the generation that trains it, and saved pieces.

    Attributes:
        memory_scale: how much more memory its stages take than estimated, as measured; 1 is no more.
    """

    job: JobId
    phase: JobPhase
    generation: Generation | None = None
    reason: str = ""
    pieces: tuple[Piece, ...] = ()
    memory_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class StageAssignment:
    """Layers [lo, hi) on one peer, with at most `staleness` + 1 micro-batches in flight (τ_s).

    Attributes:
        recompute: activations are computed again in the backward pass instead of kept.
    """

    peer: PeerId
    lo: int
    hi: int
    staleness: int
    recompute: bool = False


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """One copy of the model: its stages in pipeline order, and its local updates a round (κ_c).

    Attributes:
        overlap: updates of the next round trained before a round's mean is taken; 0 stops training for it.
    """

    stages: tuple[StageAssignment, ...]
    updates_per_round: int
    overlap: int = 0


@dataclass(frozen=True, slots=True)
class JobPlan:
    """Who trains one job, and from which state.

    Attributes:
        clusters: empty where the job has to wait; `reason` then says for what.
        standbys: peers that keep copies of saved pieces.
        batches_done: where the data order is taken up.
        version: update number from which the stages count on.
        pieces: saved state to load, covering all layers; empty for initial weights.
        ring_order: numbers of the clusters in the order of their rings; empty for the order of the numbers.
        ring_columns: 1, or as many as clusters, for one ring; between these, most members of a grid's row.
    """

    job: JobId
    generation: Generation
    clusters: tuple[ClusterPlan, ...]
    standbys: tuple[PeerId, ...] = ()
    batches_done: int = 0
    version: int = 0
    pieces: tuple[Piece, ...] = ()
    reason: str = ""
    ring_order: tuple[int, ...] = ()
    ring_columns: int = 1

    @property
    def peers(self) -> tuple[PeerId, ...]:
        return tuple(stage.peer for cluster in self.clusters for stage in cluster.stages)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a leader publishes for one (epoch, term).

    Attributes:
        snapshot_hash: of the capabilities that it was made from.
        idle: fingerprints of the peers among these that lend and have no part (`planning.turnout`).
    """

    swarm: str
    fence: Fence
    leader: PeerId
    seed: int
    snapshot_hash: str
    previous_hash: str
    jobs: tuple[JobPlan, ...] = field(default=())
    idle: tuple[int, ...] = ()
