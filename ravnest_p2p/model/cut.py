"""Where a program can be cut, and what crosses a cut.

Problem: a program of a thousand nodes has a thousand places to cut, most of them senseless (four tensors
cross instead of one) or wrong (two stages would each change a copy of one buffer). Solution: a *layer* is
the run of nodes between two useful places: one place between each two nodes that use parameters, the one
where the fewest bytes cross. Whatever depends on data inputs and constants alone (masks, positions) is
computed again on each side rather than sent. A parameter that is used at several places (a tied embedding)
belongs to the first of them and is *carried* to the others, as the result of a node would be.

Source: docs/adr/0015.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from ravnest_p2p.model import ops

if TYPE_CHECKING:
    from ravnest_p2p.model.program import Graph, Program

MAX_CROSSING = 8
"""Tensors that may cross a place which becomes a layer bound."""

MAX_USES = 4
"""Operations that may read a parameter which crosses such a place. One of more (a recurrent cell's, written
out over its steps) would be carried almost everywhere, and to no end."""


class CutMap:
    """What is alive at each place of a program; place p lies before node p.

    Attributes:
        crossing_bytes, crossing_count: carried over each place, in one direction.
        carried_bytes: of `crossing_bytes`, those of parameters.
        first_use, last_use: for every slot, the first and the last node that reads it; a parameter belongs to
            the stage of the first. A slot that no node reads has the number of nodes, and -1.
        remade: for every slot, whether it is computed again instead of carried.
    """

    def __init__(self, program: Graph) -> None:
        self._program = program
        count = len(program.nodes)
        slots = program.first_slots[-1]
        leaves = len(program.leaves)
        self.first_use = [count] * slots
        self.last_use = [-1] * slots
        self._uses = [0] * slots
        for index, node in enumerate(program.nodes):
            for slot in set(node.refs()):
                self.first_use[slot] = min(self.first_use[slot], index)
                self.last_use[slot] = index
                self._uses[slot] += 1
        for slot in program.results:
            self.last_use[slot] = count
        self.remade = _remade(program)
        shared = [s for s in range(leaves) if self.first_use[s] < self.last_use[s]]
        params = [s for s in shared if s in program.param_slots]
        self._changing = [s for s in shared if s in program.mutated_slots]
        self._busy = [s for s in params if self._uses[s] > MAX_USES]
        self._carried = [*params, *(s for s in range(leaves, slots) if not self.remade[s])]
        made = [i for i, node in enumerate(program.nodes) for _ in node.outputs]
        self._begins = [*self.first_use[:leaves], *made]
        specs, contiguous = program.analysis.specs, program.analysis.contiguous
        self.crossing_count = self._coverage(self._carried)
        self.crossing_bytes = self._coverage(self._carried, [spec.nbytes for spec in specs])
        self.carried_bytes = self._coverage(params, [spec.nbytes for spec in specs])
        self._scattered = self._coverage([s for s in self._carried if not contiguous[s]])
        self._gradients = self._coverage([s for s in self._carried if specs[s].differentiable])
        self._held = self._coverage(self._changing)
        self._kept = self._coverage(self._busy)

    def _coverage(self, slots: list[int], weights: list[int] | None = None) -> list[int]:
        """Number, or sum of the weights, of the slots that are alive over each place 0 … count."""
        steps = [0] * (len(self._program.nodes) + 2)
        for slot in slots:
            lo, hi = self._begins[slot], self.last_use[slot]
            if lo < hi:
                weight = 1 if weights is None else weights[slot]
                steps[lo + 1] += weight
                steps[hi + 1] -= weight
        return list(accumulate(steps))[:-1]

    def crossing(self, place: int) -> tuple[int, ...]:
        """Slots sent over the place, ascending."""
        return tuple(s for s in self._carried if self._begins[s] < place <= self.last_use[s])

    def fault(self, place: int) -> str:
        """Why a cut at the place would train another model, or "" where it would not."""
        if self._held[place]:
            slot = next(s for s in self._changing if self._begins[s] < place <= self.last_use[s])
            return f"{self._program.leaves[slot].name!r} changes and is used on both sides"
        if not self._gradients[place]:
            return "nothing that carries a gradient crosses"
        return ""

    def holding(self) -> tuple[str, ...]:
        """Names of the tensors that keep most of the program on one stage, widest first."""
        spans = [(self.last_use[s] - self._begins[s], s) for s in (*self._changing, *self._busy)]
        widest = sorted(spans, key=lambda item: -item[0])
        nodes = len(self._program.nodes)
        return tuple(self._program.leaves[slot].name for span, slot in widest if 2 * span >= nodes)

    def bounds(self) -> tuple[int, ...]:
        """Useful places in order, then the number of nodes: the program's `layer_bounds`."""
        nodes, params = self._program.nodes, self._program.param_slots
        anchors = [i for i, node in enumerate(nodes) if any(s in params for s in node.refs())]
        chosen = []
        for before, after in pairwise(anchors):
            places = [p for p in range(before + 1, after + 1) if self._useful(p)]
            if places:
                chosen.append(min(places, key=lambda p: (self.crossing_bytes[p], self.crossing_count[p], -p)))
        return (*chosen, len(nodes))

    def _useful(self, place: int) -> bool:
        return (
            not self._held[place]
            and not self._kept[place]
            and self._gradients[place] > 0
            and not self._scattered[place]
            and self.crossing_count[place] <= MAX_CROSSING
            and self._program.nodes[place - 1].op not in ops.MUTATING_OPS
        )


def check_bounds(program: Program) -> None:
    """Refuse layer bounds that do not end with the program, do not ascend, or cut what belongs together.

    Raises:
        ValueError: says which bound and why.
    """
    bounds = program.layer_bounds
    if not bounds or bounds[-1] != len(program.nodes) or any(a >= b for a, b in pairwise(bounds)):
        raise ValueError("layer bounds do not ascend to the number of nodes")
    for place in bounds[:-1]:
        fault = program.cut_map.fault(place)
        if fault:
            raise ValueError(f"layer bound {place}: {fault}")


def _remade(program: Graph) -> list[bool]:
    """For every slot, whether it follows from data inputs and constants alone, without chance."""
    free = [
        leaf.kind in ("input", "buffer")
        and slot not in program.param_slots
        and slot not in program.mutated_slots
        for slot, leaf in enumerate(program.leaves)
    ]
    for node in program.nodes:
        pure = node.op not in ops.RANDOM_OPS and not node.mutated() and all(free[s] for s in node.refs())
        free.extend([pure] * len(node.outputs))
    return free
