"""Where to cut a model into stages for peers in a given order.

Problem: peers of one cluster differ in speed, memory and link, and the slowest stage sets the pace of all.
Solution: exact dynamic programming over (stage, end of its layers), in two passes: the first finds the lowest
possible time of the slowest stage; the second, among all cuts that reach it, or nearly, those with the fewest
bytes over the cuts, then the most even ones. A stage's time is the longer of its compute and its transfers,
for both overlap in the pipeline, and both depend on this stage alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from ravnest_p2p.core.capability import link_bps
from ravnest_p2p.core.types import Capability, LayerCost

if TYPE_CHECKING:
    from ravnest_p2p.core.planning.recompute import Stretches

Need = Callable[[int, int, int], int]
"""Memory in bytes of (stage number, lo, hi); must not shrink when the range grows."""

Recomputes = Callable[[int, int, int], bool]
"""Whether (stage number, lo, hi) computes its activations again; what holds for a range holds for longer
ones."""

RECOMPUTE_WORK = 4.0 / 3.0
"""Work with a second forward pass over work without; a forward is a third of both passes together."""

MIN_FLOPS = 1.0
"""A peer that claims less is not planned with."""

_INFINITY = float("inf")


class LayerTable:
    """Sums over ranges of layers in constant time, and where the model may be cut.

    Args:
        layers: at least one.
        most_blocks: where there are more layers, cuts are only tried at about this many places: the cheapest
            one of each stretch of equal work. None tries all.
        memory_scale: what stages take of a peer's memory over the estimate, as measured.
        sent_share: bytes that cross a cut over what the layers say, where they are compressed.

    Attributes:
        cuts: layer indices at which a stage may start or end, ascending, 0 and `count` among them.
    """

    def __init__(
        self,
        layers: Sequence[LayerCost],
        most_blocks: int | None = None,
        memory_scale: float = 1.0,
        sent_share: float = 1.0,
    ) -> None:
        self.memory_scale = memory_scale
        self.count = len(layers)
        self._layers = layers
        self._stretches: dict[int, Stretches] = {}
        self._flops = list(accumulate((layer.flops for layer in layers), initial=0.0))
        self._params = list(accumulate((layer.param_bytes for layer in layers), initial=0))
        self._activations = list(accumulate((layer.activation_bytes for layer in layers), initial=0))
        self._remade = list(accumulate((layer.remade_bytes for layer in layers), initial=0))
        self._cuts = [0, *(_sent_bytes(layer, sent_share) for layer in layers[:-1]), 0]
        self._carried = [0, *(layer.carried_bytes for layer in layers[:-1]), 0]
        self._carries = any(self._carried)
        few = most_blocks is None or self.count <= most_blocks
        self.cuts = list(range(self.count + 1)) if few else self._cheap_cuts(most_blocks or 1)

    def _cheap_cuts(self, stretches: int) -> list[int]:
        cheapest: dict[int, int] = {}
        for at in range(1, self.count):
            parts = [
                sums[at] / sums[-1] for sums in (self._flops, self._params, self._activations) if sums[-1] > 0
            ] or [at / self.count]
            stretch = int(sum(parts) / len(parts) * stretches)
            if stretch not in cheapest or self._cuts[at] < self._cuts[cheapest[stretch]]:
                cheapest[stretch] = at
        return [0, *sorted(cheapest.values()), self.count]

    def flops(self, lo: int, hi: int) -> float:
        return self._flops[hi] - self._flops[lo]

    def param_bytes(self, lo: int, hi: int) -> int:
        return self._params[hi] - self._params[lo]

    def activation_bytes(self, lo: int, hi: int) -> int:
        return self._activations[hi] - self._activations[lo]

    def remade_bytes(self, lo: int, hi: int) -> int:
        """Of the activations, what can be made again for a few percent of the work."""
        return self._remade[hi] - self._remade[lo]

    def carried_bytes(self, lo: int, hi: int) -> int:
        """Bytes of parameters that a stage of layers [lo, hi) receives, or sends for later ones to use.

        The most over any place in it, since a memory need must not shrink when the range grows. The whole
        model sends nothing.
        """
        if not self._carries or (lo == 0 and hi == self.count):
            return 0
        return max(self._carried[lo : hi + 1])

    def cut_bytes(self, at: int) -> int:
        """Bytes over the cut before layer `at`, in each direction; 0 at both ends of the model."""
        return self._cuts[at]

    def stretches(self, window: int) -> Stretches:
        """Where a stage with so many micro-batches in flight may recompute; found once."""
        if window not in self._stretches:
            from ravnest_p2p.core.planning.recompute import Stretches

            self._stretches[window] = Stretches(self._layers, window)
        return self._stretches[window]


def _sent_bytes(layer: LayerCost, share: float) -> int:
    """Parameters cross exactly."""
    return layer.carried_bytes + math.ceil(share * (layer.out_bytes - layer.carried_bytes))


def compute_s(table: LayerTable, peer: Capability, lo: int, hi: int) -> float:
    """Forward and backward of one micro-batch, seconds."""
    return table.flops(lo, hi) / max(peer.flops, MIN_FLOPS)


def transfer_s(table: LayerTable, peer: Capability, lo: int, hi: int) -> float:
    """Time for one micro-batch on the peer's own link: it sends, and receives, over both cuts. Seconds."""
    return 8.0 * (table.cut_bytes(lo) + table.cut_bytes(hi)) / link_bps(peer)


def stage_s(table: LayerTable, peer: Capability, lo: int, hi: int, factor: float = 1.0) -> float:
    """Seconds between two micro-batches that the stage alone could keep up.

    Args:
        factor: what it computes over what the layers cost.
    """
    return max(factor * compute_s(table, peer, lo, hi), transfer_s(table, peer, lo, hi))


def stage_cuts(
    layers: Sequence[LayerCost] | LayerTable,
    peers: Sequence[Capability],
    *,
    need: Need,
    recomputes: Recomputes = lambda stage, lo, hi: False,
    tolerance: float = 0.0,
) -> list[tuple[int, int]] | None:
    """Layers [lo, hi) of each peer, in this order: slowest stage first, cut bytes second, evenness third.

    Args:
        layers: at least as many as peers, else there are no cuts; a table tries its own `cuts` only.
        peers: in pipeline order; one without speed spoils them all.
        need: memory of a stage; compared with the peer's `memory_bytes`.
        recomputes: stages that do `RECOMPUTE_WORK` times their layers' work; by default none.
        tolerance: how much slower than the least the slowest stage may be for fewer bytes, as a share; what
            speeds are known to.
    Returns:
        One non-empty range for each peer, contiguous from 0 to the last layer; None where nothing fits.
    """
    table = layers if isinstance(layers, LayerTable) else LayerTable(layers)
    blocks = len(table.cuts) - 1
    if not peers or len(peers) > blocks or any(peer.flops < MIN_FLOPS for peer in peers):
        return None
    stages = [_Stage(table, peer, n, len(peers), need, recomputes) for n, peer in enumerate(peers)]
    slowest_s = _lowest_slowest_s(blocks, stages)
    if slowest_s == _INFINITY:
        return None
    allowed_s = slowest_s * (1.0 + tolerance)
    return [(table.cuts[lo], table.cuts[hi]) for lo, hi in _fewest_bytes(table, stages, allowed_s)]


class _Stage:
    """One stage's costs as plain lists over the table's cuts, for the inner loops.

    Attributes:
        ends: cuts where it may end, so that every stage gets one block at least.
        first: for each end, the lowest start that fits the peer's memory.
        plain: for each end, the lowest start with which nothing is computed again.
        work_s: compute time of all layers before a cut; `link_s`: transfer time over a cut.
    """

    def __init__(
        self,
        table: LayerTable,
        peer: Capability,
        number: int,
        stages: int,
        need: Need,
        recomputes: Recomputes,
    ) -> None:
        cuts = table.cuts
        self.ends = range(number + 1, len(cuts) - (stages - 1 - number))
        self.work_s = [compute_s(table, peer, 0, at) for at in cuts]
        self.link_s = [8.0 * table.cut_bytes(at) / link_bps(peer) for at in cuts]
        self.first = [0] * len(cuts)
        self.plain = [0] * len(cuts)
        lo = plain = number
        for hi in self.ends:
            while lo < hi and need(number, cuts[lo], cuts[hi]) > peer.memory_bytes:
                lo += 1
            plain = max(plain, lo)
            while plain < hi and recomputes(number, cuts[plain], cuts[hi]):
                plain += 1
            self.first[hi], self.plain[hi] = lo, plain


def _lowest_slowest_s(blocks: int, stages: Sequence[_Stage]) -> float:
    best = [0.0] + [_INFINITY] * blocks
    for stage in stages:
        before, best = best, [_INFINITY] * (blocks + 1)
        work_s, link_s = stage.work_s, stage.link_s
        for hi in stage.ends:
            lowest, done_s, out_s, plain = _INFINITY, work_s[hi], link_s[hi], stage.plain[hi]
            for lo in range(hi - 1, stage.first[hi] - 1, -1):
                stage_compute_s = done_s - work_s[lo]
                if lo < plain:
                    stage_compute_s *= RECOMPUTE_WORK
                if stage_compute_s >= lowest:
                    break
                slowest_s = max(before[lo], stage_compute_s, out_s + link_s[lo])
                if slowest_s < lowest:
                    lowest = slowest_s
            best[hi] = lowest
    return best[blocks]


def _fewest_bytes(table: LayerTable, stages: Sequence[_Stage], slowest_s: float) -> list[tuple[int, int]]:
    none = (_INFINITY, _INFINITY)
    blocks = len(table.cuts) - 1
    crossing = [table.cut_bytes(at) for at in table.cuts]
    best: list[tuple[float, float]] = [(0.0, 0.0)] + [none] * blocks
    starts: list[list[int]] = []
    for stage in stages:
        before, best = best, [none] * (blocks + 1)
        start = [0] * (blocks + 1)
        work_s, link_s = stage.work_s, stage.link_s
        for hi in stage.ends:
            lowest, done_s, out_s, plain = none, work_s[hi], link_s[hi], stage.plain[hi]
            for lo in range(hi - 1, stage.first[hi] - 1, -1):
                stage_compute_s = done_s - work_s[lo]
                if lo < plain:
                    stage_compute_s *= RECOMPUTE_WORK
                if stage_compute_s > slowest_s:
                    break
                cut_bytes, unevenness = before[lo]
                cut_bytes += crossing[lo]
                if cut_bytes > lowest[0] or out_s + link_s[lo] > slowest_s:
                    continue
                cost = (cut_bytes, unevenness + stage_compute_s * stage_compute_s)
                if cost < lowest:
                    lowest, start[hi] = cost, lo
            best[hi] = lowest
        starts.append(start)
    ranges: list[tuple[int, int]] = []
    hi = blocks
    for start in reversed(starts):
        ranges.append((start[hi], hi))
        hi = start[hi]
    return ranges[::-1]
