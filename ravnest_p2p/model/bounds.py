"""Choose the layer bounds of a freshly captured program.

Problem: gradients cross a cut as contiguous tensors. Where the uncut program has them in another memory
layout (behind the transposition of attention heads), a sum over them may be done in another order, and the
last bit of the result would depend on the cut. Solution: the backward pass runs on fake tensors to find the
places with such gradients; one real step that is cut at all of them shows whether it matters, and where it
does they are no bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ravnest_p2p.model.abstract import fake_leaf, fake_mode
from ravnest_p2p.model.compute import StageComputation
from ravnest_p2p.model.execute import call
from ravnest_p2p.model.program import Program
from ravnest_p2p.model.stage import Stage
from ravnest_p2p.model.stage_programs import stage_program


def with_bounds(program: Program, weights: Mapping[str, Tensor], data: Mapping[str, Tensor]) -> Program:
    """The program with its `layer_bounds`.

    Args:
        data: one micro-batch by field name.
    """
    places, end = program.cut_map.bounds()[:-1], len(program.nodes)
    uneven = _uneven_slots(program, places)
    suspect = tuple(p for p in places if uneven & set(program.cut_map.crossing(p)))
    if suspect and not _same_gradients(program, (*suspect, end), weights, data):
        places = tuple(place for place in places if place not in suspect)
    return replace(program, layer_bounds=(*places, end))


def _uneven_slots(program: Program, places: tuple[int, ...]) -> set[int]:
    """Slots crossing these places whose gradient is not contiguous, as far as fake tensors tell."""
    # A carried parameter's gradient is only added to, element by element.
    leaves = len(program.leaves)
    crossing = {slot for place in places for slot in program.cut_map.crossing(place) if slot >= leaves}
    found: set[int] = set()

    def watch(slot: int, value: Tensor) -> None:
        def look(gradient: Tensor) -> None:
            if not gradient.is_contiguous():
                found.add(slot)

        value.register_hook(look)  # type: ignore[no-untyped-call]

    with fake_mode():
        values = [fake_leaf(leaf) for leaf in program.leaves]
        for node in program.nodes:
            values.extend(call(node, values.__getitem__))
        for slot in crossing:
            if values[slot].requires_grad:
                watch(slot, values[slot])
        try:
            values[program.output].backward()  # type: ignore[no-untyped-call]
        except RuntimeError:
            # A backward formula without a fake implementation: any of them may be uneven.
            return crossing
    return found


def _same_gradients(
    program: Program, bounds: tuple[int, ...], weights: Mapping[str, Tensor], data: Mapping[str, Tensor]
) -> bool:
    """Whether a step cut at all of these places gives the bits of the uncut one."""
    whole = _gradients(replace(program, layer_bounds=(len(program.nodes),)), weights, data)
    cut = _gradients(replace(program, layer_bounds=bounds), weights, data)
    return whole.keys() == cut.keys() and all(torch.equal(whole[n], cut[n]) for n in whole)


def _gradients(
    program: Program, weights: Mapping[str, Tensor], data: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Gradients of one step, each layer on a stage of its own."""
    count = len(program.layer_bounds)
    stages = [Stage(StageComputation(stage_program(program, n, n + 1)), weights) for n in range(count)]
    carried: tuple[Tensor, ...] = ()
    for stage in stages:
        carried = stage.forward(carried, data)
    back: list[Tensor | None] | None = None
    for stage in reversed(stages):
        back = stage.backward(back)
    return {name: gradient for stage in stages for name, gradient in stage.gradients.items()}
