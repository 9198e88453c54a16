"""Measure on this machine what each layer of a program takes, one layer of a kind only.

Problem: counted operations mispredict time by up to a factor of two (small convolutions, exotic activations),
and a model that fits nowhere cannot be run to find out. Solution: run layers one at a time, forward and
backward, on random numbers; layers of equal operations are measured once. Only the shares are used: all
layers together keep the cost that was counted, so that peers' speeds mean what they meant.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from ravnest_p2p.core.types import LayerCost
from ravnest_p2p.model.blocks import signatures
from ravnest_p2p.model.compute import StageComputation
from ravnest_p2p.model.node import TensorSpec
from ravnest_p2p.model.program import Program
from ravnest_p2p.model.stage_programs import StageProgram, stage_program

ROUNDS = 5
MOST_S = 0.5
"""One kind of layer is measured `ROUNDS` times, or until this much time has gone."""


def measured_layers(program: Program) -> tuple[LayerCost, ...]:
    """The program's layers with `flops` shared out by measured time.

    Takes the memory of the largest layer, and at most about a second for each kind of layer. The result
    depends on this machine and on what else it does.
    """
    times_s = layer_times_s(program)
    total = sum(layer.flops for layer in program.layers)
    share = total / max(sum(times_s), 1e-12)
    return tuple(
        replace(layer, flops=time_s * share) for layer, time_s in zip(program.layers, times_s, strict=True)
    )


def layer_times_s(program: Program) -> tuple[float, ...]:
    """Seconds of every layer's forward and backward on this machine."""
    known: dict[int, float] = {}
    found = []
    for index, kind in enumerate(signatures(program)):
        if kind not in known:
            known[kind] = _time_s(_alone(program, index))
        found.append(known[kind])
    return tuple(found)


def stand_in(spec: TensorSpec, generator: torch.Generator) -> Tensor:
    """Small random numbers, or zeros where numbers are whole: valid as activation, weight, index and mask."""
    if spec.torch_dtype.is_floating_point:
        return torch.randn(spec.shape, generator=generator).mul_(0.05).to(spec.torch_dtype)
    return torch.zeros(spec.shape, dtype=spec.torch_dtype)


def _alone(program: Program, index: int) -> StageProgram:
    """One layer as a stage that receives what it would compute again as well (masks, tables)."""
    stage = stage_program(program, index, index + 1)
    begin = program.layer_bounds[index - 1] if index else 0
    inside = tuple((i, node) for i, node in stage.nodes if i >= begin)
    made = {slot for i, _ in inside for slot in range(program.first_slots[i], program.first_slots[i + 1])}
    read = {slot for _, node in inside for slot in node.refs()} | set(stage.sent_slots)
    remade = tuple(sorted(read - made - set(stage.received_slots) - set(range(len(program.leaves)))))
    received = (*stage.received_slots, *remade)
    specs = tuple(program.analysis.specs[slot] for slot in received)
    return replace(stage, nodes=inside, received_slots=received, receives=specs)


class StageRun:
    """One stage with random weights and inputs, to be run again and again."""

    def __init__(self, stage: StageProgram) -> None:
        generator = torch.Generator().manual_seed(0)

        def made(names: Iterable[str]) -> dict[str, Tensor]:
            return {name: stand_in(stage.tensor_spec(name), generator) for name in names}

        self._params = {name: tensor.requires_grad_() for name, tensor in made(stage.params).items()}
        self._buffers = {name: tensor.abs_() for name, tensor in made(stage.buffers).items()}
        self._data = made(stage.data_inputs)
        self._received = [
            stand_in(spec, generator).requires_grad_(spec.differentiable) for spec in stage.receives
        ]
        self._computation = StageComputation(stage)

    def step(self) -> None:
        """Forward and backward of one micro-batch."""
        sent = self._computation.forward(self._params, self._buffers, self._received, self._data, 0)
        roots = [tensor for tensor in sent if tensor.requires_grad]
        wanted = [tensor for tensor in (*self._params.values(), *self._received) if tensor.requires_grad]
        if roots and wanted:
            torch.autograd.grad(roots, wanted, [torch.ones_like(t) for t in roots], allow_unused=True)


def _time_s(stage: StageProgram) -> float:
    run = StageRun(stage)
    # Other processes on the machine would lengthen long layers more than short ones; one thread's own time
    # does not see them.
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    spent: list[float] = []
    while len(spent) < 2 or (len(spent) <= ROUNDS and sum(spent) < MOST_S):
        begun_s = clock()
        run.step()
        spent.append(clock() - begun_s)
    return min(spent[1:])
