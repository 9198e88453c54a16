"""Choose the layer bounds of a freshly captured program.

Problem: gradients cross a cut as contiguous tensors. Where the uncut program has them in another memory
layout (behind the transposition of attention heads), sums over them are done in another order, and the last
bit of the result would depend on the cut. Solution: the backward pass runs on fake tensors, and a place where
the gradient is laid out otherwise is no bound.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ravnest_p2p.model.abstract import fake_leaf, fake_mode
from ravnest_p2p.model.execute import call
from ravnest_p2p.model.program import Program


def with_bounds(program: Program) -> Program:
    """The program with its `layer_bounds`."""
    places = program.cut_map.bounds()
    uneven = _uneven_slots(program, places)
    kept = tuple(
        place
        for place in places
        if place == len(program.nodes) or not uneven & set(program.cut_map.crossing(place))
    )
    return replace(program, layer_bounds=kept)


def _uneven_slots(program: Program, places: tuple[int, ...]) -> set[int]:
    """Slots crossing these places whose gradient is not contiguous, as far as fake tensors tell."""
    crossing = {slot for place in places[:-1] for slot in program.cut_map.crossing(place)}
    found: set[int] = set()

    def watch(slot: int, value: torch.Tensor) -> None:
        def look(gradient: torch.Tensor) -> None:
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
            # A backward formula without a fake implementation: nothing is known, every place stays.
            return set()
    return found
