"""Run one stage in mixed precision: products in bfloat16, weights and whatever crosses a cut in float32.

Problem: under autocast the dtype of a value depends on what came before it, and a stage cannot know what the
stage before computed in; a residual sum would be rounded on one peer and not on another, and what is trained
would depend on the cut. Solution: PyTorch's own autocast lists decide each operation, and at every place
where the program may be cut, cut or not, what crosses takes the dtype that the program declares. A parameter
that may be carried over a cut is read through a view: of a parameter itself autocast keeps its copy for the
next use, and adds up their gradients in bfloat16, which it could not where the uses are on two stages.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ravnest_p2p.core.errors import CaptureError
from ravnest_p2p.model.compute import Slots, StageComputation
from ravnest_p2p.model.package import Package
from ravnest_p2p.model.program import Program
from ravnest_p2p.model.stage_programs import StageProgram, stage_program


class MixedComputation(StageComputation):
    """As `StageComputation`, under `torch.autocast` to bfloat16; parameters and gradients keep their dtype.

    BatchNorm statistics stay float32, and losses, norms and the like are computed in what autocast holds to
    be safe on the device.
    """

    def __init__(
        self,
        stage: StageProgram,
        device: torch.device | str = "cpu",
        *,
        recompute: Sequence[int] | None = None,
    ) -> None:
        # What autocast saves are its casts of what could be made again.
        super().__init__(stage, device, recompute=recompute, remake=False)
        program, crossing = stage.program, crossing_slots(stage.program)
        specs = program.analysis.specs
        steps: list[Any] = []
        for step in self._steps:
            steps.append(step)
            casts = [(slot, specs[slot].torch_dtype) for slot in step.out if slot in crossing]
            steps += [_Cast(step.index, slot, dtype) for slot, dtype in casts if dtype.is_floating_point]
        self._steps = steps
        self._viewed = sorted(crossing_params(program))
        # Before torch 2.10 a weight that autocast cast under no_grad was kept without its gradient.
        self._keep_casts = not any(node.no_grad for node in program.nodes)

    def forward(
        self,
        params: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        received: Sequence[Tensor],
        data: Mapping[str, Tensor],
        seed: int,
    ) -> tuple[Tensor, ...]:
        """See `StageComputation.forward`."""
        with torch.autocast(self.device.type, torch.bfloat16, cache_enabled=self._keep_casts):
            return super().forward(params, buffers, received, data, seed)

    def _filled(
        self,
        params: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        received: Sequence[Tensor],
        data: Mapping[str, Tensor],
    ) -> list[Any]:
        slots = super()._filled(params, buffers, received, data)
        for slot in self._viewed:
            if slots[slot] is not None:
                slots[slot] = slots[slot].view_as(slots[slot])
        return slots


def check_mixed(package: Package, data: Mapping[str, Tensor]) -> None:
    """Run one micro-batch forward and backward, to know before anybody else has to.

    Args:
        data: every data field of the program, by name.
    Raises:
        CaptureError: an operation cannot do with the dtypes that autocast gives it, or a gradient overflows.
    """
    program = package.program
    stage = stage_program(program, 0, len(program.layer_bounds))
    params = {name: package.weights[name].clone().requires_grad_() for name in stage.params}
    buffers = {name: package.weights[name].clone() for name in stage.buffers}
    try:
        (loss,) = MixedComputation(stage).forward(params, buffers, (), data, 0)
        gradients = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
    except RuntimeError as error:
        raise CaptureError(f"the model does not run in bf16 ({str(error)[:200]}); use fp32") from error
    if not all(value.isfinite().all() for value in (loss, *gradients) if value is not None):
        raise CaptureError("in bf16 the model's loss or a gradient is not finite; use fp32")


class _Cast:
    """A step that gives a slot, where it is still needed, the dtype that the program declares."""

    __slots__ = ("dtype", "index", "out", "reads", "slot")
    random = False
    drop: tuple[int, ...] = ()

    def __init__(self, index: int, slot: int, dtype: torch.dtype) -> None:
        self.index = index
        self.slot = slot
        self.reads = self.out = (slot,)
        self.dtype = dtype

    def run(self, slots: Slots, generator: torch.Generator | None, seed: int) -> None:
        if slots[self.slot] is not None:
            slots[self.slot] = slots[self.slot].to(self.dtype)


def crossing_slots(program: Program) -> frozenset[int]:
    """Results of nodes that some cut of the program sends from one stage to the next, and the loss."""
    last_use: dict[int, int] = {program.output: len(program.nodes)}
    for index, node in enumerate(program.nodes):
        last_use.update((slot, index) for slot in node.refs() if slot != program.output)
    bounds, remade = program.layer_bounds, program.cut_map.remade
    found = {program.output}
    for index in range(len(program.nodes)):
        following = bisect_right(bounds, index)
        for slot in range(program.first_slots[index], program.first_slots[index + 1]):
            if bounds[following] <= last_use.get(slot, -1) and not remade[slot]:
                found.add(slot)
    return frozenset(found)


def crossing_params(program: Program) -> frozenset[int]:
    """Parameters that some cut of the program sends from one stage to the next."""
    bounds, cuts = program.layer_bounds, program.cut_map
    return frozenset(
        slot
        for slot, leaf in enumerate(program.leaves)
        if leaf.kind == "param"
        and cuts.first_use[slot] < len(program.nodes)
        and bounds[bisect_right(bounds, cuts.first_use[slot])] <= cuts.last_use[slot]
    )
