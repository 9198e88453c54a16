"""A planning problem as arrays, the form in which compiled functions take it.

Problem: the search evaluates hundreds of thousands of clusters a second, and a Python object for each peer or
layer would cost more than the evaluation. Solution: one row for a peer, one for a cut between layers, and one
of numbers that hold for all, in a tuple that is handed on as it is.

Logarithms are rounded, for mathematical libraries differ in their last digit and a plan must not.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ravnest_p2p.core.planning.problem import Problem

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

(
    FLOPS,
    UP,
    DOWN,
    LINE,
    MEMORY,
    WITH_HOST,
    ACCESS,
    FAILS,
    LOG_LINE,
    LOG_FLOPS,
    LOG_MEMORY,
) = range(11)
"""Columns of `Tables.peers`."""

WORK, SYNC, MOVE, STATE, HELD, CROSSING = range(6)
"""Columns of `Tables.layers`, one row for each cut from 0 to L."""

(
    MICROBATCH,
    WINDOW,
    EPOCH,
    SLOWEST,
    STAGE_DISCOUNT,
    SPREAD_DISCOUNT,
    RECOVER,
    FREE_MOVES,
    LEAST_STAGES,
    MOST_CLUSTERS,
    LEAST_CROSSING,
    STAY,
) = range(12)
"""Places in `Tables.rules`."""

_DIGITS = 9


class Tables(NamedTuple):
    """Arrays of one problem.

    Attributes:
        peers: (N, 11), columns as named above; base units, logarithms to base 2.
        layers: (L + 1, 6), sums before each cut; `CROSSING` is the cut's own.
        regions: (N,)
        latency: (R, R), seconds one way.
        flow: (R, R), bytes a second.
        held: (N, 2), layers [lo, hi) that a peer held before.
        rules: (12,)
    """

    peers: Floats
    layers: Floats
    regions: Ints
    latency: Floats
    flow: Floats
    held: Ints
    rules: Floats


def tables_of(problem: Problem) -> Tables:
    """The problem as arrays."""
    rules, layers = problem.rules, problem.layers
    rows = [
        [
            *(p.flops, p.up_bytes_s, p.down_bytes_s, p.bytes_s),
            *(p.memory_bytes, p.memory_bytes + p.host_bytes, p.access_s, p.fails_per_s),
            *(_log2(p.bytes_s), _log2(p.flops), _log2(max(p.memory_bytes, 1.0))),
        ]
        for p in problem.peers
    ]
    columns = [layers.work, layers.sync_bytes, layers.move_bytes]
    columns += [layers.state_bytes, layers.held_bytes, layers.crossing]
    return Tables(
        peers=np.array(rows, np.float64).reshape(len(rows), 11),
        layers=np.ascontiguousarray(np.array(columns, np.float64).T),
        regions=np.array([p.region for p in problem.peers], np.int64),
        latency=np.array(problem.latency_s, np.float64),
        flow=np.array(problem.flow_bytes_s, np.float64),
        held=np.array([p.held for p in problem.peers], np.int64).reshape(len(rows), 2),
        rules=np.array(
            [
                rules.microbatch,
                rules.window,
                rules.epoch_s,
                rules.slowest_s,
                rules.stage_discount,
                rules.spread_discount,
                rules.recover_s,
                float(rules.moves_are_free),
                float(rules.least_stages),
                float(rules.most_clusters),
                min(layers.crossing[1:-1], default=0.0),
                0.0,
            ]
        ),
    )


def _log2(value: float) -> float:
    return round(math.log2(value), _DIGITS)
