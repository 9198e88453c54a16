"""Questions that the paper leaves open, for `benchmarks.kappa`: staleness, and a planner that measures badly.

* Staleness: the theory bounds it by K^(1/4) for K updates. Two stages of the char-GPT, 16 samples an update;
  the first stage's τ grows. "at once" applies each gradient when it comes, τ updates late; ŵ is the product's
  way, where τ counts micro-batches (8 make an update) and no gradient is late by more than one update.
* Planner: each peer's bandwidth, or its speed too, is measured wrongly by a factor between 0.5 and 1.5. The
  plan that is made of that is judged by what is true, against the plan made of what is true.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.penalty_runs import AT_ONCE, SYNCHRONOUS, Outcome, Run, outcome
from ravnest_p2p.core.pipeline.correction import SPECULATIVE
from ravnest_p2p.core.planning.instance import parse_problem
from ravnest_p2p.core.planning.objective import score
from ravnest_p2p.core.planning.problem import Peer, Problem
from ravnest_p2p.core.planning.search.solve import solve
from ravnest_p2p.testing.planning_problems import instance

STAGES, M = 2, 8
STALENESS = (1, 2, 4, 8, 16, 32)
UPDATES, QUICK_UPDATES = 240, 20
INSTANCES = [("gpt350m", 20, 1), ("gpt350m", 40, 2), ("gpt1.3b", 40, 3), ("gpt1.3b", 80, 4)]
DRAWS = 3
ERROR = 0.5


def staleness(seeds: int, quick: bool, keep: Path | None) -> dict[str, Any]:
    """Loss against τ of the first stage, over that without staleness."""
    updates = QUICK_UPDATES if quick else UPDATES

    def runs(way: str, tau: int) -> list[Outcome]:
        return [outcome(Run(way, STAGES, M, updates, s, latency=tau - 1.0), keep) for s in range(seeds)]

    exact = runs(SYNCHRONOUS, 1)
    rows: dict[str, Any] = {}
    for way in (AT_ONCE, SPECULATIVE):
        for tau in STALENESS:
            if way == SPECULATIVE and tau > M:
                continue  # one update's micro-batches are the most that it takes
            its = runs(way, tau)
            gaps = [100 * (a.held_out / b.held_out - 1) for a, b in zip(its, exact, strict=True)]
            rows[f"{way}, τ = {tau}"] = {
                "loss": mean(one.held_out for one in its),
                "gap %": mean(gaps),
                "gaps %": [round(gap, 2) for gap in gaps],
                "τ / K^(1/4)": (tau if way == AT_ONCE else tau / M) / updates**0.25,
            }
    return rows


def planner(quick: bool) -> dict[str, Any]:
    """What plans lose that were made of wrong measurements, by instance."""
    rows: dict[str, Any] = {}
    for model, peers, seed in INSTANCES[:1] if quick else INSTANCES:
        problem = parse_problem(instance(model, peers, seed))
        best = score(problem, solve(problem)).objective
        rows[f"{model}, {peers} peers, seed {seed}"] = {
            "bandwidth wrong, lost %": _lost(problem, best, seed, _bandwidth),
            "all rates wrong, lost %": _lost(problem, best, seed, _rates),
        }
    return rows


def _lost(
    problem: Problem, best: float, seed: int, wrong: Callable[[Peer, random.Random], Peer]
) -> dict[str, float]:
    chance = random.Random(seed)
    found = []
    for _ in range(DRAWS):
        measured = replace(problem, peers=tuple(wrong(peer, chance) for peer in problem.peers))
        found.append(100 * (1 - score(problem, solve(measured)).objective / best))
    return {"mean": mean(found), "worst": max(found)}


def _bandwidth(peer: Peer, chance: random.Random) -> Peer:
    return peer._replace(
        up_bytes_s=peer.up_bytes_s * _factor(chance), down_bytes_s=peer.down_bytes_s * _factor(chance)
    )


def _rates(peer: Peer, chance: random.Random) -> Peer:
    return _bandwidth(peer, chance)._replace(flops=peer.flops * _factor(chance))


def _factor(chance: random.Random) -> float:
    return chance.uniform(1 - ERROR, 1 + ERROR)
