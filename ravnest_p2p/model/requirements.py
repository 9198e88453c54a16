"""What a model needs of those who train it: memory by what it is for, work, and bytes over each cut.

Problem: a planner, a report and a user's question must never give three answers. Solution: one description of
the training (`Terms`), the planner's own memory model and layer costs below every number, and beside them the
exact peak of a stage's tensors, from a run on fake tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from ravnest_p2p.core.pipeline.batch_advice import half_of
from ravnest_p2p.core.planning.cost import may_remake, memory_of, stretches_of
from ravnest_p2p.core.planning.cuts import LayerTable
from ravnest_p2p.core.planning.memory import StageMemory, carried_versions, speculative_copies, stage_memory
from ravnest_p2p.core.planning.recompute import ALWAYS, AUTO
from ravnest_p2p.core.types import BlobHash, JobSpec, LayerCost, OptimizerSpec
from ravnest_p2p.model.abstract import analyse
from ravnest_p2p.model.blocks import Group, groups, layer_names, span_name
from ravnest_p2p.model.footprint import footprint
from ravnest_p2p.model.package import Package
from ravnest_p2p.model.program import Program
from ravnest_p2p.model.stage_programs import stage_program

_ADAMW = OptimizerSpec("adamw", 1e-3)


@dataclass(frozen=True, slots=True)
class Terms:
    """How the model is to be trained, as far as it decides what a stage needs.

    Attributes:
        precision: "fp32", or "bf16": activations as torch.autocast holds them, its copies of the weights
            among them; weights, gradients, optimizer and what crosses the cuts stay float32.
        microbatches_per_update: m.
        staleness_bound: upper bound on any stage's τ; None stands for half of m.
        checkpoint: which stages recompute their activations: "never", "auto" or "always".
    """

    optimizer: OptimizerSpec = field(default=_ADAMW)
    precision: str = "fp32"
    microbatches_per_update: int = 4
    staleness_bound: int | None = None
    checkpoint: str = AUTO

    def job(self, layers: Sequence[LayerCost], stages: int = 0) -> JobSpec:
        """The job as the planner sees it: layers and terms, without blobs and data."""
        m = self.microbatches_per_update
        bound = half_of(m) if self.staleness_bound is None else self.staleness_bound
        return JobSpec(
            name="",
            program=BlobHash(""),
            weights=(),
            fields=(),
            samples=0,
            layers=tuple(layers),
            microbatch_size=1,
            microbatches_per_update=m,
            updates_per_round=1,
            total_batches=1,
            seed=0,
            optimizer=self.optimizer,
            stages=stages,
            clusters=1,
            staleness_bound=bound,
            checkpoint=self.checkpoint,
        )


@dataclass(frozen=True, slots=True)
class Need:
    """What layers [lo, hi) need, for one micro-batch.

    Attributes:
        name: what their parameters' names share.
        params: number of trained parameters.
        flops: forward and backward.
        memory: as the planner counts it.
        in_bytes, out_bytes: over the cuts before and after, in each direction.
        carried_bytes: of `out_bytes`, parameters that later stages use too; these go out once a version only.
        carried: their names, all of a tied one.
        peak_bytes: most bytes of tensors at once, exact: all of `memory`, with what the backward of one
            micro-batch needs beside; 0 where it was not asked for.
        recompute: for a stage that computes its activations again.
    """

    lo: int
    hi: int
    name: str
    params: int
    flops: float
    memory: StageMemory
    in_bytes: int
    out_bytes: int
    carried_bytes: int
    carried: tuple[str, ...] = ()
    peak_bytes: int = 0
    recompute: bool = False


class Requirements:
    """What the parts of one program need under the given terms; each number is computed when it is asked for.

    Args:
        model: a package or its program.
        layers: costs to use instead of the program's own, such as measured ones.
    """

    def __init__(
        self, model: Package | Program, terms: Terms | None = None, layers: Sequence[LayerCost] | None = None
    ) -> None:
        self.terms = terms or Terms()
        program = model.program if isinstance(model, Package) else model
        self.program = in_precision(program, self.terms.precision)
        self._layers = None if layers is None else tuple(layers)

    @cached_property
    def layers(self) -> tuple[LayerCost, ...]:
        """Cost of every layer, in the terms' precision."""
        return self.program.layers if self._layers is None else self._layers

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Runs of equal blocks."""
        return groups(self.program)

    @property
    def params(self) -> int:
        """Number of trained parameters, tied ones once."""
        return sum(math.prod(leaf.shape) for leaf in self.program.params)

    @cached_property
    def whole(self) -> Need:
        """The model on one peer."""
        return self.need(0, len(self.layers), recompute=self.terms.checkpoint == ALWAYS)

    def need(
        self,
        lo: int,
        hi: int,
        *,
        stage: int = 0,
        stages: int = 1,
        staleness: int = 0,
        recompute: bool = False,
        exact: bool = False,
    ) -> Need:
        """What layers [lo, hi) need as stage number `stage` of `stages`.

        Args:
            staleness: τ of the stage.
            recompute: activations are computed again instead of kept; the work for it is not in `flops`.
            exact: also find `peak_bytes`; takes about a second for each thousand nodes.
        """
        table = self._table
        memory = memory_of(self._job, table, stage, stages, lo, hi, staleness, recompute=recompute)
        return Need(
            lo=lo,
            hi=hi,
            name=span_name(self._names, lo, hi),
            params=sum(self._params[lo:hi]),
            flops=table.flops(lo, hi),
            memory=memory,
            in_bytes=table.cut_bytes(lo),
            out_bytes=table.cut_bytes(hi),
            carried_bytes=self.layers[hi - 1].carried_bytes,
            carried=self._carried(hi) if self.layers[hi - 1].carried_bytes else (),
            peak_bytes=self._peak_bytes(lo, hi, staleness, stage == stages - 1, recompute) if exact else 0,
            recompute=recompute,
        )

    @cached_property
    def _job(self) -> JobSpec:
        return self.terms.job(self.layers)

    def _carried(self, hi: int) -> tuple[str, ...]:
        program = self.program
        tied = {group[0]: " = ".join(group) for group in program.tied}
        crossing = program.cut_map.crossing(program.layer_bounds[hi - 1])
        names = (program.leaves[slot].name for slot in crossing if slot < len(program.leaves))
        return tuple(tied.get(name, name) for name in names)

    def _peak_bytes(self, lo: int, hi: int, staleness: int, last: bool, recompute: bool) -> int:
        """At a backward: that micro-batch, the others in flight, and every copy of what is trained.

        A ring works when the sums are gone, and takes less.
        """
        stage = stage_program(self.program, lo, hi)
        starts = stretches_of(self._job, self._table).starts if recompute else None
        found = footprint(stage, recompute=starts, remake=may_remake(self._job))
        copies = stage_memory(
            param_bytes=sum(stage.tensor_spec(name).nbytes for name in stage.params),
            activation_bytes=found.held_bytes,
            optimizer=self.terms.optimizer,
            staleness=staleness,
            microbatches_per_update=self.terms.microbatches_per_update,
            last=last,
        )
        received = sum(stage.receives[place].nbytes for place in stage.received_params)
        versions = carried_versions(staleness, self.terms.microbatches_per_update)
        others = copies.activations - found.held_bytes - (staleness + 1 - versions) * received
        passed = {stage.sent_slots[place] for place in stage.sent_params} - set(stage.received_slots)
        sent = sum(self.program.leaves[slot].spec.nbytes for slot in passed)
        early = speculative_copies(staleness, self.terms.microbatches_per_update, last)
        return (
            found.weight_bytes
            + copies.tensors
            - copies.weights
            - copies.activations
            - copies.momentary
            + others
            + sent
            + early * sent // 2
            + found.peak_bytes
        )

    @cached_property
    def _table(self) -> LayerTable:
        return LayerTable(self.layers)

    @cached_property
    def _names(self) -> tuple[tuple[str, ...], ...]:
        return layer_names(self.program)

    @cached_property
    def _params(self) -> tuple[int, ...]:
        inputs = len(self.program.inputs)
        counted = []
        seen: set[int] = set()
        lo = 0
        for hi in self.program.layer_bounds:
            used = {slot for node in self.program.nodes[lo:hi] for slot in node.refs()} - seen
            held = [slot for slot in used if inputs <= slot < inputs + len(self.program.params)]
            counted.append(sum(math.prod(self.program.leaves[slot].shape) for slot in held))
            seen.update(held)
            lo = hi
        return tuple(counted)


def requirements(
    model: Package | Program, terms: Terms | None = None, layers: Sequence[LayerCost] | None = None
) -> Requirements:
    """What a captured model needs; see `Requirements`.

    Raises:
        ConfigError: the precision is unknown, or an operation refuses it.
    """
    return Requirements(model, terms, layers)


def in_precision(program: Program, precision: str) -> Program:
    """The program with what it holds in another precision; the same program where it is "fp32".

    What crosses a cut keeps its declared dtype, so that the cuts do not change the result.
    """
    if precision == "fp32":
        return program
    twin = replace(program)
    found = analyse(program, precision=precision)
    twin.__dict__["analysis"] = replace(found, specs=program.analysis.specs)
    return twin
