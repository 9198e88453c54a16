"""What each layer of a program costs: the planner's view of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ravnest_p2p.core.types import LayerCost
from ravnest_p2p.model.cost import train_flops
from ravnest_p2p.model.footprint import NoBackward, footprint
from ravnest_p2p.model.stage_programs import stage_program

if TYPE_CHECKING:
    from ravnest_p2p.model.program import Program


def layer_costs(program: Program) -> tuple[LayerCost, ...]:
    """Cost of every layer for one micro-batch; see `core.types.LayerCost`."""
    analysis, cuts = program.analysis, program.cut_map
    costs = []
    lo = 0
    for hi in program.layer_bounds:
        nodes = program.nodes[lo:hi]
        used = {slot for node in nodes for slot in node.refs() if slot < len(program.leaves)}
        # A constant is held wherever it is used, a parameter by its owner.
        here = [s for s in used if program.leaves[s].kind != "param" or cuts.first_use[s] >= lo]
        leaves = [program.leaves[slot] for slot in here]
        costs.append(
            LayerCost(
                flops=sum(train_flops(node, analysis.specs) for node in nodes),
                param_bytes=sum(leaf.spec.nbytes for leaf in leaves if leaf.kind != "input"),
                activation_bytes=sum(analysis.saved_bytes[lo:hi]),
                out_bytes=cuts.crossing_bytes[hi] if hi < len(program.nodes) else 0,
                carried_bytes=cuts.carried_bytes[hi] if hi < len(program.nodes) else 0,
                remade_bytes=sum(analysis.remade_bytes[lo:hi]),
            )
        )
        lo = hi
    if costs:
        costs[-1] = replace(costs[-1], activation_bytes=costs[-1].activation_bytes + _workspace(program))
    return tuple(costs)


def _workspace(program: Program) -> int:
    """Bytes that the last layer's backward needs beside what is held: all activations are alive meanwhile.

    In a language model these are gradients of the logits, twice as large as what its loss holds. Those of
    other layers are small beside a stage. A backward pass that cannot be run by shapes counts nothing: an
    estimate must not refuse a program, and training it would, with a message of its own.
    """
    count = len(program.layer_bounds)
    try:
        found = footprint(stage_program(program, count - 1, count))
    except NoBackward:
        return 0
    return found.peak_bytes - found.held_bytes
