"""From files to a stage that can be trained: program, weights or saved pieces, trainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ravnest_p2p.core.averaging import ADAPTIVE
from ravnest_p2p.core.errors import PackageError
from ravnest_p2p.core.pipeline.nonfinite import Skipped
from ravnest_p2p.core.planning.cost import remakes, stretches_of
from ravnest_p2p.core.planning.cuts import LayerTable
from ravnest_p2p.core.types import JobSpec
from ravnest_p2p.daemon.messages import StartRun
from ravnest_p2p.model import (
    Limits,
    StageComputation,
    StageProgram,
    load_tensors,
    read_program,
    stage_program,
)
from ravnest_p2p.model.matrices import hidden_matrices
from ravnest_p2p.model.mixed import MixedComputation
from ravnest_p2p.model.origin import origin
from ravnest_p2p.training import StageTrainer, TensorSpec, load_pieces
from ravnest_p2p.training.means import Averaging
from ravnest_p2p.training.momenta import WithMomenta
from ravnest_p2p.training.outer import OuterSpec


@dataclass(frozen=True, slots=True)
class Lent:
    """What the owner lets a worker use.

    Attributes:
        microbatch_flops: most operations of one micro-batch, over all stages.
        memory_bytes: what the stage may use.
        compiling: a compiler may be used.
    """

    device: torch.device
    microbatch_flops: float
    memory_bytes: int
    compiling: bool = False


@dataclass(frozen=True, slots=True)
class LoadedStage:
    """
    Attributes:
        compiling: parts of it will be compiled, once its tensors have been counted.
        with_momenta: where the job averages moments too.
    """

    program: StageProgram
    trainer: StageTrainer
    compiling: bool = False
    with_momenta: WithMomenta | None = None

    def averaged_names(self, lo: int, hi: int) -> list[str]:
        """Of what is averaged of layers [lo, hi), in an order that all peers share."""
        part = stage_program(self.program.program, lo, hi)
        moments = self.with_momenta.names_of(set(part.params)) if self.with_momenta else []
        return sorted({*part.params, *part.mutable_buffers}) + moments

    @property
    def averaged_params(self) -> Mapping[str, Tensor]:
        """What is averaged and stepped: parameters, and moments where the job wants it."""
        return self.with_momenta or self.trainer.params


def load_stage(start: StartRun, lent: Lent) -> LoadedStage:
    """Validate the program and build the trainer.

    Raises:
        PackageError: the program, the weights or the manifest do not belong together (remote's fault).
        BlobError: a saved piece is malformed (remote's fault).
    """
    whole = read_program(start.program, Limits(flops=lent.microbatch_flops))
    if len(whole.layer_bounds) != len(start.spec.layers):
        raise PackageError(
            f"the manifest names {len(start.spec.layers)} layers, the program has {len(whole.layer_bounds)}"
        )
    cluster = start.plan.clusters[start.cluster]
    place = cluster.stages[start.stage]
    stage = stage_program(whole, place.lo, place.hi)
    optimizer_state = None
    if start.pieces:
        params = {name: _spec(stage, name) for name in stage.params}
        buffers = {name: _spec(stage, name) for name in stage.buffers}
        state = load_pieces([Path(path) for path in start.pieces], params, buffers)
        if state.batches_done != start.plan.batches_done:
            raise PackageError(
                f"the pieces hold {state.batches_done} batches, the plan says {start.plan.batches_done}"
            )
        weights = {**state.params, **state.buffers}
        optimizer_state = state.optimizer_state
    else:
        wanted = {name: stage.tensor_spec(name) for name in (*stage.params, *stage.buffers)}
        weights = load_tensors(start.weights, wanted, partial=True)
    device = lent.device
    computation = _computation(start, stage, lent)
    compiling = False
    if lent.compiling:
        # Brings the code generator along, which takes time and memory.
        from ravnest_p2p.model.compiled import compile_stage

        compiling = bool(compile_stage(computation))
    trainer = StageTrainer(
        computation,
        {name: weights[name].to(device) for name in stage.params},
        {name: weights[name].to(device) for name in stage.buffers},
        optimizer=start.spec.optimizer,
        microbatches_per_update=start.spec.microbatches_per_update,
        staleness=place.staleness,
        is_last=stage.is_last,
        version=start.plan.version,
        optimizer_state=optimizer_state,
        matrices=hidden_matrices(whole) if start.spec.optimizer.name == "muon" else (),
        device=device,
        correction=start.spec.staleness_correction,
        stage=start.stage,
        changing=stage.mutable_buffers,
        locate=partial(origin, computation),
        skipped=Skipped(start.spec.nonfinite),
    )
    return LoadedStage(
        stage, trainer, compiling, WithMomenta(trainer) if start.spec.average_momentum else None
    )


def averaging_of(spec: JobSpec) -> Averaging:
    """How the job's clusters average."""
    outer = OuterSpec(spec.outer, spec.outer_lr, spec.outer_momentum)
    return Averaging(spec.averaging, outer, spec.means, spec.seed, spec.kappa == ADAPTIVE)


def _computation(start: StartRun, stage: StageProgram, lent: Lent) -> StageComputation:
    """What runs the stage, keeping as much as the plan and the lent memory let it."""
    spec, cluster = start.spec, start.plan.clusters[start.cluster]
    table, place = LayerTable(spec.layers), cluster.stages[start.stage]
    recompute = stretches_of(spec, table).starts if place.recompute else None
    if spec.precision == "bf16":
        return MixedComputation(stage, lent.device, recompute=recompute)
    layers = (start.stage, len(cluster.stages), place.lo, place.hi)
    remake = remakes(spec, table, *layers, place.staleness, lent.memory_bytes)
    return StageComputation(stage, lent.device, recompute=recompute, remake=remake)


def _spec(stage: StageProgram, name: str) -> TensorSpec:
    spec = stage.tensor_spec(name)
    return TensorSpec(spec.dtype, spec.shape)
