"""Section `balance`: how even the stages are that `split` makes, by the clock.

Every stage runs forward and backward alone, the stages of a split in turn, and each round gives one ratio;
the median round counts. Unequal peers are emulated: a stage's time is divided by its peer's speed. The ideal
is the best of every order and every cut that fits the peers' memory; "fluid" is what no cut could beat, the
model shared out like water.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import combinations, permutations
from statistics import median
from typing import Any

import torch

from benchmarks.common import Goal
from benchmarks.requirements_models import CASES, make
from ravnest_p2p.core.planning.cost import need_of
from ravnest_p2p.core.planning.cuts import LayerTable
from ravnest_p2p.core.planning.memory import PROCESS_OVERHEAD_BYTES
from ravnest_p2p.core.types import Capability, LayerCost
from ravnest_p2p.model import Package, Requirements, StageProgram, capture, measured_layers, split_program
from ravnest_p2p.model.fitting import a_peer, cuts_of, fit
from ravnest_p2p.model.profile import StageRun

SPEEDS = (1.0, 0.5, 0.25)
ROOM = 1.3
"""Memory of an unequal peer over what its share of the model, by speed, takes."""


def section(quick: bool) -> tuple[dict[str, Any], list[Goal]]:
    """Rows by model, and the goals."""
    equal: dict[str, Any] = {}
    unequal: dict[str, Any] = {}
    rounds = 3 if quick else 9
    for name in list(CASES)[:2] if quick else CASES:
        case = make(name)
        package = capture(case.model, case.inputs, loss=case.loss, example_labels=case.labels)
        measured = measured_layers(package.program)
        equal[name] = _equal(package, measured, rounds)
        unequal[name] = _unequal(package, measured, rounds)
    free = [row for row in equal.values() if row["largest_layer_of_4"] <= 1.2]
    goals = [
        Goal(
            f"slowest stage over mean, equal peers, {stages} stages, {costs} costs",
            max(row[f"{costs}_{stages}"] for row in free),
            "",
            "<= 1.2",
        )
        for costs in ("counted", "measured")
        for stages in (2, 3, 4)
    ]
    goals.append(
        Goal(
            "slowest stage over the ideal, speeds 1 : ½ : ¼",
            max(row["over_ideal"] for row in unequal.values()),
            "",
            "<= 1.15",
        )
    )
    return {"equal peers": equal, "unequal peers": unequal}, goals


def _equal(package: Package, measured: Sequence[LayerCost], rounds: int) -> dict[str, Any]:
    work = [layer.flops for layer in measured]
    row: dict[str, Any] = {"largest_layer_of_4": max(work) / (sum(work) / 4)}
    for stages in (2, 3, 4):
        for costs, layers in (("counted", None), ("measured", measured)):
            runs = _rounds(split_program(package.program, stages=stages, layers=layers), rounds)
            row[f"{costs}_{stages}"] = median(max(times) / (sum(times) / stages) for times in runs)
    return row


def _unequal(package: Package, measured: Sequence[LayerCost], rounds: int) -> dict[str, Any]:
    needs = Requirements(package, layers=measured)
    peers = _peers(needs)
    draft = fit(needs, peers, any_order=True)
    speeds = [float(peer.peer) for peer in draft.peers]
    ratios = []
    for times in _rounds(split_program(package.program, cuts_of(draft)), rounds):
        slowest = max(time_s / speed for time_s, speed in zip(times, speeds, strict=True))
        ratios.append(slowest / (sum(times) / sum(speeds)))
    found, best = median(ratios), _best(needs, peers)
    order = " → ".join(f"{speed:g}" for speed in speeds)
    return {"order": order, "over_fluid": found, "best_over_fluid": best, "over_ideal": found / best}


def _peers(needs: Requirements) -> list[Capability]:
    """Peers of speed 1 : ½ : ¼ whose memory holds little more than their share of the model."""
    whole = needs.need(0, len(needs.layers), stages=3, staleness=2).memory.needed - PROCESS_OVERHEAD_BYTES
    peers = []
    for speed in SPEEDS:
        room = PROCESS_OVERHEAD_BYTES + ROOM * whole * speed / sum(SPEEDS)
        peers.append(a_peer(f"{speed:g}", flops=speed * 1e10, memory_bytes=int(room)))
    return peers


def _best(needs: Requirements, peers: Sequence[Capability]) -> float:
    """Every order and every pair of cuts that fits: the least time of the slowest, over a fluid one."""
    spec = needs.terms.job(needs.layers)
    table = LayerTable(needs.layers)
    fits = need_of(spec, table, 3)
    count = len(needs.layers)
    best = float("inf")
    for order in permutations(peers):
        for a, b in combinations(range(1, count), 2):
            parts = ((0, a), (a, b), (b, count))
            slowest_s = max(table.flops(*part) / peer.flops for part, peer in zip(parts, order, strict=True))
            if slowest_s < best and all(
                fits(stage, *part) <= peer.memory_bytes
                for stage, (part, peer) in enumerate(zip(parts, order, strict=True))
            ):
                best = slowest_s
    return best / (table.flops(0, count) / sum(peer.flops for peer in peers))


def _rounds(stages: Sequence[StageProgram], rounds: int) -> list[list[float]]:
    """Seconds of each stage, a list for each round; the first round warms up and does not count."""
    runs = [StageRun(stage) for stage in stages]
    return [[_least_s(run) for run in runs] for _ in range(rounds + 1)][1:]


def _least_s(run: StageRun) -> float:
    """Of three runs, so that another process on the machine does not count; time of this thread."""
    spent = []
    for _ in range(3):
        begun_s = time.thread_time()
        run.step()
        spent.append(time.thread_time() - begun_s)
    return min(spent)


torch.set_num_threads(1)
