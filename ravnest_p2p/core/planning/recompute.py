"""Where a stage may forget its activations, and what that saves.

Problem: a stage holds the activations of every micro-batch in flight; held but at a few places, and computed
again in the backward pass, they take a fraction of the memory and a third more work. Every peer has to know
the same places, from the job's manifest alone. Solution: the model is cut into stretches of about equal
activations, at its cheapest cuts, as many as make the window's kept values and one stretch's activations
together the least. A stage's stretches are those of the model, as far as they lie in it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise

from ravnest_p2p.core.planning.cuts import LayerTable
from ravnest_p2p.core.types import LayerCost

NEVER, AUTO, ALWAYS = CHECKPOINTS = ("never", "auto", "always")
"""Whether a job's stages recompute: none, those that do not fit their peer otherwise, or all."""

_COUNTS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


class Stretches:
    """The stretches of a model.

    Args:
        window: micro-batches that a stage has in flight.

    Attributes:
        starts: layers with which a stretch starts, ascending; the first is 0.
    """

    def __init__(self, layers: Sequence[LayerCost], window: int) -> None:
        bare = [LayerCost(0.0, 0, layer.activation_bytes, layer.out_bytes) for layer in layers]
        whole = LayerTable(bare)
        held = {tuple(LayerTable(bare, count).cuts) for count in _COUNTS if count < len(bare)}
        edges = min([(0, len(bare)), *sorted(held)], key=lambda places: _bytes(whole, places, window))
        self.starts = edges[:-1]
        self._table = whole
        self._largest = _largest(whole, edges)
        self._kept = list(accumulate((whole.cut_bytes(at) for at in self.starts), initial=0))

    def kept_bytes(self, lo: int, hi: int) -> int:
        """Held by layers [lo, hi) for one micro-batch between forward and backward: what enters stretches.

        A stretch of which only a part lies in [lo, hi) counts as whole, so that more layers never need less.
        """
        return self._kept[bisect_left(self.starts, hi)] - self._kept[bisect_right(self.starts, lo) - 1]

    def largest_bytes(self, lo: int, hi: int) -> int:
        """Activations that one backward of layers [lo, hi) brings back at once, at most."""
        return min(self._largest, self._table.activation_bytes(lo, hi))


def _largest(table: LayerTable, edges: Sequence[int]) -> int:
    return max(table.activation_bytes(lo, hi) for lo, hi in pairwise(edges))


def _bytes(table: LayerTable, edges: Sequence[int], window: int) -> int:
    return window * sum(table.cut_bytes(at) for at in edges[:-1]) + _largest(table, edges)
