"""Where to cut a model into stages for peers in a given order.

Problem: peers of one cluster differ in speed, memory and link, and the slowest stage sets the pace of all.
Solution: exact dynamic programming over (stage, end of its layers), in two passes: the first finds the lowest
possible time of the slowest stage; the second, among all cuts that reach it, those with the fewest bytes over
the cuts, then the most even ones. A stage's time is the longer of its compute and its transfers, for both
overlap in the pipeline, and both depend on this stage alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

from ravnest_p2p.core.capability import link_bps
from ravnest_p2p.core.types import Capability, LayerCost

Need = Callable[[int, int, int], int]
"""Memory in bytes of (stage number, lo, hi); must not shrink when the range grows."""

_INFINITY = float("inf")


class LayerTable:
    """Sums over ranges of layers in constant time."""

    def __init__(self, layers: Sequence[LayerCost]) -> None:
        self.count = len(layers)
        self._flops = list(accumulate((layer.flops for layer in layers), initial=0.0))
        self._params = list(accumulate((layer.param_bytes for layer in layers), initial=0))
        self._activations = list(accumulate((layer.activation_bytes for layer in layers), initial=0))
        self._cuts = [0, *(layer.out_bytes for layer in layers[:-1]), 0]

    def flops(self, lo: int, hi: int) -> float:
        return self._flops[hi] - self._flops[lo]

    def param_bytes(self, lo: int, hi: int) -> int:
        return self._params[hi] - self._params[lo]

    def activation_bytes(self, lo: int, hi: int) -> int:
        return self._activations[hi] - self._activations[lo]

    def cut_bytes(self, at: int) -> int:
        """Bytes over the cut before layer `at`, in each direction; 0 at both ends of the model."""
        return self._cuts[at]


def compute_s(table: LayerTable, peer: Capability, lo: int, hi: int) -> float:
    """Forward and backward of one micro-batch, seconds."""
    return table.flops(lo, hi) / peer.flops if peer.flops > 0 else _INFINITY


def transfer_s(table: LayerTable, peer: Capability, lo: int, hi: int) -> float:
    """Time for one micro-batch on the peer's own link: it sends, and receives, over both cuts. Seconds."""
    return 8.0 * (table.cut_bytes(lo) + table.cut_bytes(hi)) / link_bps(peer)


def stage_s(table: LayerTable, peer: Capability, lo: int, hi: int) -> float:
    """Seconds between two micro-batches that the stage alone could keep up."""
    return max(compute_s(table, peer, lo, hi), transfer_s(table, peer, lo, hi))


def stage_cuts(
    layers: Sequence[LayerCost] | LayerTable, peers: Sequence[Capability], *, need: Need
) -> list[tuple[int, int]] | None:
    """Layers [lo, hi) of each peer, in this order: slowest stage first, cut bytes second, evenness third.

    Args:
        layers: at least as many as peers, else there are no cuts.
        peers: in pipeline order; one without speed gets no layer.
        need: memory of a stage; compared with the peer's `memory_bytes`.
    Returns:
        One non-empty range for each peer, contiguous from 0 to the last layer; None where nothing fits.
    """
    table = layers if isinstance(layers, LayerTable) else LayerTable(layers)
    if not peers or len(peers) > table.count:
        return None
    slowest_s = _lowest_slowest_s(table, peers, need)
    if slowest_s == _INFINITY:
        return None
    return _fewest_bytes(table, peers, need, slowest_s)


def _lowest_slowest_s(table: LayerTable, peers: Sequence[Capability], need: Need) -> float:
    best = [0.0] + [_INFINITY] * table.count
    for stage, peer in enumerate(peers):
        before, best = best, [_INFINITY] * (table.count + 1)
        for hi in range(stage + 1, table.count - (len(peers) - 1 - stage) + 1):
            lowest = _INFINITY
            for lo in range(hi - 1, stage - 1, -1):
                if compute_s(table, peer, lo, hi) >= lowest or need(stage, lo, hi) > peer.memory_bytes:
                    break
                if before[lo] < lowest:
                    lowest = min(lowest, max(before[lo], stage_s(table, peer, lo, hi)))
            best[hi] = lowest
    return best[table.count]


def _fewest_bytes(
    table: LayerTable, peers: Sequence[Capability], need: Need, slowest_s: float
) -> list[tuple[int, int]]:
    none = (_INFINITY, _INFINITY)
    best: list[tuple[float, float]] = [(0.0, 0.0)] + [none] * table.count
    starts: list[list[int]] = []
    for stage, peer in enumerate(peers):
        before, best = best, [none] * (table.count + 1)
        start = [0] * (table.count + 1)
        for hi in range(stage + 1, table.count - (len(peers) - 1 - stage) + 1):
            for lo in range(hi - 1, stage - 1, -1):
                work_s = compute_s(table, peer, lo, hi)
                if work_s > slowest_s or need(stage, lo, hi) > peer.memory_bytes:
                    break
                if before[lo] == none or transfer_s(table, peer, lo, hi) > slowest_s:
                    continue
                cut_bytes, unevenness = before[lo]
                cost = (cut_bytes + table.cut_bytes(lo), unevenness + work_s * work_s)
                if cost < best[hi]:
                    best[hi], start[hi] = cost, lo
        starts.append(start)
    ranges: list[tuple[int, int]] = []
    hi = table.count
    for start in reversed(starts):
        ranges.append((start[hi], hi))
        hi = start[hi]
    return ranges[::-1]
