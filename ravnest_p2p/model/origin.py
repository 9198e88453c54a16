"""Name the first operation of a stage that makes a value that is not finite.

Problem: a stage whose results are NaN says nothing of where they came from; to look at every operation while
training would cost more than training. Solution: only when it has happened, the forward of that micro-batch
runs once more, without gradients, and each step's arguments and results are looked at.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ravnest_p2p.model.compute import Slots, StageComputation
from ravnest_p2p.model.stage_programs import StageProgram


def origin(
    computation: StageComputation,
    params: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    received: Sequence[Tensor],
    data: Mapping[str, Tensor],
    seed: int,
) -> str:
    """Where NaN or +infinity comes from, in words; arguments as for the forward that found it.

    -infinity alone is no fault: attention masks are made of it. Nothing that is given changes.
    """
    stage = computation.stage
    again = type(computation)(stage, computation.device)
    again.fuse(lambda steps: [_Watched(step, stage) for step in steps])
    own = {name: buffer.detach().clone() for name, buffer in buffers.items()}
    try:
        with torch.no_grad():
            again.forward(params, own, received, data, seed)
    except _FoundError as found:
        return str(found)
    return "the forward pass, though not when it is run again"


class _FoundError(Exception):
    """Ends the second run at the place."""


class _Watched:
    """A step that looks at what it reads and makes; takes its place."""

    random = False

    def __init__(self, step: Any, stage: StageProgram) -> None:
        self._step = step
        self._stage = stage

    def run(self, slots: Slots, generator: torch.Generator | None, seed: int) -> None:
        step = self._step
        read = {slot: slots[slot] for slot in step.reads}
        worse = [slot for slot, value in read.items() if not _usable(value)]
        step.run(slots, generator, seed)
        if all(_usable(slots[slot]) for slot in step.out):
            return
        if worse:
            raise _FoundError(_named(self._stage, worse[0]))
        raise _FoundError(self._place())

    def _place(self) -> str:
        stage, index = self._stage, self._step.index
        node, program = dict(stage.nodes)[index], stage.program
        layer = bisect_right(program.layer_bounds, index)
        text = f"{node.op} in layer {layer} makes it of finite values"
        weights = [program.leaves[slot].name for slot in node.refs() if slot in program.param_slots]
        return f"{text}, with {weights[0]}" if weights else text


def _named(stage: StageProgram, slot: int) -> str:
    if slot in stage.received_slots:
        return "what came from the stage before"
    if slot < len(stage.program.leaves):
        leaf = stage.program.leaves[slot]
        return f"the data ({leaf.name})" if leaf.kind == "input" else f"{leaf.kind} {leaf.name}"
    return "the forward pass"


def _usable(value: Any) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point() or not value.numel():
        return True
    return float(value.max()) < float("inf")
