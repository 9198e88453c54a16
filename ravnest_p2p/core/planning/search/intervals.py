"""The least interval of peers in a given order, and the cuts for it: compiled.

Two dynamic programs over (stage, end of its layers). The first finds the lowest time of the slowest stage or
link. Where Little's law asks for more than that, the second finds the shortest way around with no stage above
a time, and bisection the least time that both allow. Both look only at layers that a bound lets the stages
before reach and those after finish, which are few.
"""

from __future__ import annotations

from numba import njit

from ravnest_p2p.core.planning.search.tables import (
    ACCESS,
    CROSSING,
    DOWN,
    FLOPS,
    HELD,
    LEAST_CROSSING,
    LINE,
    MEMORY,
    STATE,
    SYNC,
    UP,
    WINDOW,
    WITH_HOST,
    WORK,
    Floats,
    Ints,
    Tables,
)

NEVER = 1e300
HALVINGS = 30

_HOPE = 1.25
"""In times of the least that speeds alone allow: the first bound that is tried, for it is soon refuted."""

_SLACK = 1.0 + 1e-9
"""Room for rounding, relative."""


@njit(cache=True)
def best_interval(
    t: Tables,
    order: Ints,
    stages: int,
    transfer_s: float,
    least_s: float,
    most_s: float,
    near: float,
    cuts: Ints,
    best: Floats,
    back: Ints,
) -> float:
    """Shortest interval, and into `cuts` the cuts for it; `NEVER` where nothing fits within `most_s`.

    Args:
        least_s: `bound_s` of these peers.
        near: how well the interval has to be known, relative.
    """
    count = t.layers.shape[0] - 1
    slowest_s = NEVER
    if _HOPE * least_s < most_s:
        slowest_s = _least_slowest(t, order, stages, transfer_s, _HOPE * least_s, best, back)
    if slowest_s >= NEVER:
        slowest_s = _least_slowest(t, order, stages, transfer_s, most_s, best, back)
    if slowest_s >= NEVER:
        return NEVER
    _read_cuts(back, stages, count, cuts)
    by_window_s = around_s(t, order, stages, cuts) / t.rules[WINDOW]
    if by_window_s <= slowest_s:
        return slowest_s
    found_s = by_window_s if by_window_s <= most_s else NEVER
    return _with_way_around(
        t, order, stages, transfer_s, slowest_s, min(most_s, by_window_s), found_s, near, cuts, best, back
    )


@njit(cache=True)
def bound_s(t: Tables, order: Ints, stages: int) -> float:
    """No interval of these peers is shorter, however the layers are cut."""
    work, crossing = t.layers[t.layers.shape[0] - 1, WORK], t.rules[LEAST_CROSSING]
    flops = fastest = way_s = slowest_s = 0.0
    for s in range(stages):
        i = order[s]
        flops += t.peers[i, FLOPS]
        fastest = max(fastest, t.peers[i, FLOPS])
        crossings = (s > 0) + (s + 1 < stages)
        slowest_s = max(slowest_s, crossings * crossing / t.peers[i, LINE])
        if s + 1 < stages:
            way_s += link_s(t, i, order[s + 1], crossing)
    return max(slowest_s, work / flops, (way_s + work / fastest) / t.rules[WINDOW])


@njit(cache=True)
def exceeds(layers: Floats, lo: int, hi: int, memory: float, with_host: float, sync: float) -> bool:
    """Whether a stage is too much for its peer's memory, or for its line in an averaging."""
    return (
        layers[hi, STATE] - layers[lo, STATE] > memory
        or layers[hi, HELD] - layers[lo, HELD] > with_host
        or layers[hi, SYNC] - layers[lo, SYNC] > sync
    )


@njit(cache=True)
def _least_slowest(
    t: Tables, order: Ints, stages: int, transfer_s: float, most_s: float, best: Floats, back: Ints
) -> float:
    """Least time of the slowest stage or link; `NEVER` if above `most_s`."""
    layers = t.layers
    count = layers.shape[0] - 1
    most_s *= _SLACK
    speed = 0.0
    for s in range(stages):
        speed += t.peers[order[s], FLOPS]
    best[0, 0] = 0.0
    least_lo = most_lo = 0
    reached = 0.0
    for s in range(stages):
        i = order[s]
        flops, line, sync = t.peers[i, FLOPS], t.peers[i, LINE], transfer_s * t.peers[i, LINE]
        memory, with_host = t.peers[i, MEMORY], t.peers[i, WITH_HOST]
        flow = NEVER if s == 0 else t.flow[t.regions[order[s - 1]], t.regions[i]]
        reached += flops
        left = layers[count, WORK] - most_s * (speed - reached)
        least_hi, most_hi = count + 1, -1
        for hi in range(count if s == stages - 1 else least_lo + 1, count - (stages - 1 - s) + 1):
            if layers[hi, WORK] > most_s * reached:
                break
            best[s + 1, hi] = NEVER
            if s < stages - 1 and layers[hi, WORK] < left:
                continue
            lowest = most_s
            for lo in range(min(hi - 1, most_lo), least_lo - 1, -1):
                here = (layers[hi, WORK] - layers[lo, WORK]) / flops
                if here >= lowest or exceeds(layers, lo, hi, memory, with_host, sync):
                    break
                if best[s, lo] >= lowest:
                    continue
                here = max(
                    here,
                    best[s, lo],
                    (layers[lo, CROSSING] + layers[hi, CROSSING]) / line,
                    layers[lo, CROSSING] / flow,
                )
                if here < lowest:
                    lowest = here
                    back[s + 1, hi] = lo
            if lowest < most_s:
                best[s + 1, hi] = lowest
                least_hi, most_hi = min(least_hi, hi), hi
        if most_hi < 0:
            return NEVER
        least_lo, most_lo = least_hi, most_hi
    return best[stages, count]


@njit(cache=True)
def _read_cuts(back: Ints, stages: int, count: int, cuts: Ints) -> None:
    at = count
    for s in range(stages, 0, -1):
        cuts[s] = at
        at = back[s, at]
    cuts[0] = 0


@njit(cache=True)
def hop_s(t: Tables, a: int, b: int) -> float:
    """Latency from one peer to another."""
    return t.latency[t.regions[a], t.regions[b]] + t.peers[a, ACCESS] + t.peers[b, ACCESS]


@njit(cache=True)
def link_s(t: Tables, a: int, b: int, crossing: float) -> float:
    """Both ways between neighbours: latency and transfers."""
    flow = t.flow[t.regions[a], t.regions[b]]
    there = min(t.peers[a, UP], t.peers[b, DOWN], flow)
    return 2.0 * hop_s(t, a, b) + crossing / there + crossing / min(t.peers[b, UP], t.peers[a, DOWN], flow)


@njit(cache=True)
def around_s(t: Tables, order: Ints, stages: int, cuts: Ints) -> float:
    """From a micro-batch's start to its gradient's end at the first stage."""
    total = 0.0
    for s in range(stages):
        total += (t.layers[cuts[s + 1], WORK] - t.layers[cuts[s], WORK]) / t.peers[order[s], FLOPS]
        if s + 1 < stages:
            total += link_s(t, order[s], order[s + 1], t.layers[cuts[s + 1], CROSSING])
    return total


@njit(cache=True)
def slowest_part_s(t: Tables, order: Ints, stages: int, cuts: Ints) -> float:
    """Longest of the stages and links."""
    longest = 0.0
    for s in range(stages):
        i = order[s]
        lo, hi = cuts[s], cuts[s + 1]
        longest = max(longest, (t.layers[hi, WORK] - t.layers[lo, WORK]) / t.peers[i, FLOPS])
        longest = max(longest, (t.layers[lo, CROSSING] + t.layers[hi, CROSSING]) / t.peers[i, LINE])
        if s + 1 < stages:
            longest = max(longest, t.layers[hi, CROSSING] / t.flow[t.regions[i], t.regions[order[s + 1]]])
    return longest


@njit(cache=True)
def _with_way_around(
    t: Tables,
    order: Ints,
    stages: int,
    transfer_s: float,
    least_s: float,
    most_s: float,
    found_s: float,
    near: float,
    cuts: Ints,
    best: Floats,
    back: Ints,
) -> float:
    """Least interval between these two where the way around counts too; `cuts`, good for `found_s`, change.

    The shortest way around with no stage above a bound asks for a certain interval. The least is no shorter
    than the shorter of these two, and no longer than the longer one.
    """
    count = t.layers.shape[0] - 1
    window = t.rules[WINDOW]
    bound = most_s
    for _ in range(HALVINGS):
        around = _least_sum(t, order, stages, transfer_s, bound, False, best, back)
        needed_s = around / window
        if around < NEVER and max(bound, needed_s) <= found_s:
            _read_cuts(back, stages, count, cuts)
            found_s = max(slowest_part_s(t, order, stages, cuts), needed_s)
        least_s = max(least_s, min(bound, needed_s))
        most_s = min(most_s, found_s)
        if most_s - least_s < near * most_s:
            break
        bound = 0.5 * (least_s + most_s)
    return found_s


@njit(cache=True)
def _least_sum(
    t: Tables,
    order: Ints,
    stages: int,
    transfer_s: float,
    most_s: float,
    of_moves: bool,
    best: Floats,
    back: Ints,
) -> float:
    """Shortest way around, or fewest moves, with no stage and no link above `most_s`; `NEVER` if none."""
    layers = t.layers
    count = layers.shape[0] - 1
    most_s *= _SLACK
    latency_s = speed = 0.0
    for s in range(stages):
        speed += t.peers[order[s], FLOPS]
    best[0, 0] = 0.0
    least_lo = most_lo = 0
    reached = 0.0
    for s in range(stages):
        i = order[s]
        flops, line, sync = t.peers[i, FLOPS], t.peers[i, LINE], transfer_s * t.peers[i, LINE]
        memory, with_host = t.peers[i, MEMORY], t.peers[i, WITH_HOST]
        flow = NEVER if s == 0 else t.flow[t.regions[order[s - 1]], t.regions[i]]
        both_ways = 0.0
        if s > 0:
            before = order[s - 1]
            both_ways = 1.0 / min(t.peers[before, UP], t.peers[i, DOWN], flow)
            both_ways += 1.0 / min(t.peers[i, UP], t.peers[before, DOWN], flow)
            latency_s += 2.0 * hop_s(t, before, i)
        reached += flops
        left = layers[count, WORK] - most_s * (speed - reached)
        least_hi, most_hi = count + 1, -1
        for hi in range(count if s == stages - 1 else least_lo + 1, count - (stages - 1 - s) + 1):
            if layers[hi, WORK] > most_s * reached:
                break
            best[s + 1, hi] = NEVER
            if s < stages - 1 and layers[hi, WORK] < left:
                continue
            lowest = NEVER
            for lo in range(min(hi - 1, most_lo), least_lo - 1, -1):
                here = (layers[hi, WORK] - layers[lo, WORK]) / flops
                if here > most_s or exceeds(layers, lo, hi, memory, with_host, sync):
                    break
                if of_moves:
                    total = best[s, lo] + (t.held[i, 0] > lo or t.held[i, 1] < hi)
                else:
                    # Latency is the same for all cuts, and counted at the end.
                    total = best[s, lo] + here + layers[lo, CROSSING] * both_ways
                if total >= lowest:
                    continue
                crossing = layers[lo, CROSSING] + layers[hi, CROSSING]
                if crossing <= most_s * line and layers[lo, CROSSING] <= most_s * flow:
                    lowest = total
                    back[s + 1, hi] = lo
            if lowest < NEVER:
                best[s + 1, hi] = lowest
                least_hi, most_hi = min(least_hi, hi), hi
        if most_hi < 0:
            return NEVER
        least_lo, most_lo = least_hi, most_hi
    return best[stages, count] + (0.0 if of_moves else latency_s)


@njit(cache=True)
def cut_with_fewest_moves(
    t: Tables,
    order: Ints,
    stages: int,
    transfer_s: float,
    most_s: float,
    cuts: Ints,
    best: Floats,
    back: Ints,
) -> float:
    """Cut so that as few stages move as possible with no stage and no link above `most_s`.

    Returns:
        The interval, which the way around may make longer; `NEVER` where nothing fits.
    """
    if _least_sum(t, order, stages, transfer_s, most_s, True, best, back) >= NEVER:
        return NEVER
    _read_cuts(back, stages, t.layers.shape[0] - 1, cuts)
    return max(slowest_part_s(t, order, stages, cuts), around_s(t, order, stages, cuts) / t.rules[WINDOW])
