"""Where a program can be cut, and what crosses a cut.

Problem: a program of a thousand nodes has a thousand places to cut, most of them senseless (four tensors
cross instead of one) or wrong (two stages would train copies of one tied weight). Solution: a *layer* is
the run of nodes between two useful places: one place between each two nodes that use parameters, the one
where the fewest bytes cross. Whatever depends on data inputs and constants alone (masks, positions) is
computed again on each side rather than sent.
"""

from __future__ import annotations

from itertools import accumulate, pairwise

from ravnest_p2p.model import ops
from ravnest_p2p.model.program import Program

MAX_CROSSING = 8
"""Tensors that may cross a place which becomes a layer bound."""


class CutMap:
    """What is alive at each place of a program; place p lies before node p.

    Attributes:
        crossing_bytes, crossing_count: carried over each place, in one direction.
        remade: for every slot, whether it is computed again instead of carried.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        count = len(program.nodes)
        slots = program.first_slots[-1]
        leaves = len(program.leaves)
        self._defined = [-1] * leaves + [i for i, node in enumerate(program.nodes) for _ in node.outputs]
        self._first_use = [count] * slots
        self._last_use = [-1] * slots
        for index, node in enumerate(program.nodes):
            for slot in node.refs():
                self._first_use[slot] = min(self._first_use[slot], index)
                self._last_use[slot] = index
        self._last_use[program.output] = count
        self.remade = _remade(program)
        self._carried = [s for s in range(leaves, slots) if not self.remade[s]]
        specs, contiguous = program.analysis.specs, program.analysis.contiguous
        spans = [(self._defined[s], self._last_use[s], s) for s in self._carried]
        self.crossing_count = _coverage(count, [(lo, hi, 1) for lo, hi, _ in spans])
        self.crossing_bytes = _coverage(count, [(lo, hi, specs[s].nbytes) for lo, hi, s in spans])
        self._scattered = _coverage(count, [(lo, hi, 1) for lo, hi, s in spans if not contiguous[s]])
        self._gradients = _coverage(count, [(lo, hi, 1) for lo, hi, s in spans if specs[s].differentiable])
        self._held = _coverage(count, [(lo, hi, 1) for lo, hi, _ in self._shared()])

    def _shared(self) -> list[tuple[int, int, str]]:
        """(first use, last use, name) of every tensor that must stay on one stage."""
        found = []
        for slot, leaf in enumerate(self._program.leaves):
            single = leaf.kind == "param" or slot in self._program.mutated_slots
            if single and self._first_use[slot] < self._last_use[slot]:
                found.append((self._first_use[slot], self._last_use[slot], leaf.name))
        return found

    def crossing(self, place: int) -> tuple[int, ...]:
        """Slots sent over the place, ascending."""
        return tuple(s for s in self._carried if self._defined[s] < place <= self._last_use[s])

    def fault(self, place: int) -> str:
        """Why a cut at the place would train another model, or "" where it would not."""
        if self._held[place]:
            names = [name for lo, hi, name in self._shared() if lo < place <= hi]
            return f"{names[0]!r} is used on both sides and must stay on one stage"
        if not self._gradients[place]:
            return "nothing that carries a gradient crosses"
        return ""

    def holding(self) -> tuple[str, ...]:
        """Names of the tensors whose uses span most of the program, widest first."""
        widest = sorted(self._shared(), key=lambda item: item[0] - item[1])
        return tuple(name for lo, hi, name in widest if 2 * (hi - lo) >= len(self._program.nodes))

    def bounds(self) -> tuple[int, ...]:
        """Useful places in order, then the number of nodes: the program's `layer_bounds`."""
        nodes = self._program.nodes
        inputs, params = len(self._program.inputs), len(self._program.params)
        anchors = [
            i for i, node in enumerate(nodes) if any(inputs <= s < inputs + params for s in node.refs())
        ]
        chosen = []
        for before, after in pairwise(anchors):
            places = [p for p in range(before + 1, after + 1) if self._useful(p)]
            if places:
                chosen.append(min(places, key=lambda p: (self.crossing_bytes[p], self.crossing_count[p], -p)))
        return (*chosen, len(nodes))

    def _useful(self, place: int) -> bool:
        return (
            not self._held[place]
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


def _coverage(count: int, spans: list[tuple[int, int, int]]) -> list[int]:
    """Sum of the weights of the spans (lo, hi, weight) with lo < place ≤ hi, for each place 0 … count."""
    steps = [0] * (count + 2)
    for lo, hi, weight in spans:
        if lo < hi:
            steps[lo + 1] += weight
            steps[hi + 1] -= weight
    return list(accumulate(steps))[: count + 1]


def _remade(program: Program) -> list[bool]:
    """For every slot, whether it follows from data inputs and constants alone, without chance."""
    free = [
        leaf.kind == "input" or (leaf.kind == "buffer" and slot not in program.mutated_slots)
        for slot, leaf in enumerate(program.leaves)
    ]
    for node in program.nodes:
        pure = node.op not in ops.RANDOM_OPS and not node.mutated() and all(free[s] for s in node.refs())
        free.extend([pure] * len(node.outputs))
    return free
