"""All cuts with which a cluster takes no longer than a given time: compiled, for the exact search."""

from __future__ import annotations

import numpy as np
from numba import njit

from ravnest_p2p.core.planning.search.intervals import exceeds, link_s
from ravnest_p2p.core.planning.search.tables import (
    CROSSING,
    FLOPS,
    LINE,
    MEMORY,
    WINDOW,
    WITH_HOST,
    WORK,
    Ints,
    Tables,
)


@njit(cache=True, nogil=True)
def cuts_within(t: Tables, order: Ints, transfer_s: float, most_s: float, found: Ints) -> int:
    """Enter into `found` every way to cut so that no stage, no link and no way around takes too long.

    Stage by stage, each as long as its time and what is left of the way around allow.

    Args:
        transfer_s: Q, see `kernels`.
        most_s: of an interval.
        found: (rows, stages + 1) or wider; as many rows are filled as there are.
    Returns:
        How many ways there are, also where `found` has no room for them.
    """
    layers, stages = t.layers, order.size
    count = layers.shape[0] - 1
    if stages > count:
        return 0
    number, depth = 0, 0
    cuts, end = np.zeros(stages + 1, np.int64), np.zeros(stages + 1, np.int64)
    around = np.zeros(stages + 1)
    end[0] = count if stages == 1 else 1
    while depth >= 0:
        lo, hi, i = cuts[depth], end[depth], order[depth]
        line = t.peers[i, LINE]
        work_s = (layers[min(hi, count), WORK] - layers[lo, WORK]) / t.peers[i, FLOPS]
        total_s = around[depth] + work_s
        if depth > 0:
            total_s += link_s(t, order[depth - 1], i, layers[lo, CROSSING])
        # What is too much for a stage is too much for a longer one.
        if (
            hi > count - (stages - 1 - depth)
            or exceeds(layers, lo, hi, t.peers[i, MEMORY], t.peers[i, WITH_HOST], transfer_s * line)
            or work_s > most_s
            or total_s > most_s * t.rules[WINDOW]
        ):
            depth -= 1
            continue
        end[depth] = hi + 1
        if (layers[lo, CROSSING] + layers[hi, CROSSING]) / line > most_s:
            continue
        if depth > 0:
            flow = t.flow[t.regions[order[depth - 1]], t.regions[i]]
            if layers[lo, CROSSING] / flow > most_s:
                depth -= 1
                continue
        cuts[depth + 1] = hi
        if depth == stages - 1:
            if number < found.shape[0]:
                found[number, : stages + 1] = cuts
            number += 1
            continue
        depth += 1
        around[depth] = total_s
        end[depth] = count if depth == stages - 1 else hi + 1
    return number
