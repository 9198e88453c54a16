"""Does the simulation that `benchmarks.async_penalty` rests on train what a real swarm trains?

Six peers on loopback train the benchmark's GPT in two clusters of three stages, which average every κ
updates. Then the simulation trains the same job: the plan's layers, τ and κ, the product's order of samples
and weights of the clusters. What both end with is compared by its loss on held-out text and weight by weight.
Where the job keeps the plan's τ, all bits should be the same; where stages choose it as they measure, a
batch's may be smaller than the simulation's.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import ravnest_p2p as rn
from benchmarks import penalty_setting as setting
from benchmarks.common import Goal
from benchmarks.penalty_runs import package_of, weights_of
from ravnest_p2p.client.progress import Progress
from ravnest_p2p.client.swarm import Job, Swarm
from ravnest_p2p.core.ledger import DataOrder, Shares
from ravnest_p2p.core.pipeline.timeline import Span
from ravnest_p2p.core.pipeline.window import FIXED, MEASURED
from ravnest_p2p.core.types import ClusterPlan, JobPhase, PeerId, StageAssignment
from ravnest_p2p.model import Package, StageComputation, stage_program
from ravnest_p2p.testing.averaged_sim import train_clusters
from ravnest_p2p.testing.local_swarm import LocalSwarm, wait_until
from ravnest_p2p.training import StageTrainer

CLUSTERS, STAGES, M, KAPPA = 2, 3, 8, 10
UPDATES, QUICK_UPDATES = 80, 24
SEED, TRIES = 0, 3
EPOCH_S = 900
START_S, TRAIN_S = 300.0, 1200.0


def real(quick: bool) -> tuple[dict[str, Any], list[Goal]]:
    """Both runs, and how far apart they end, with each way to choose τ."""
    package = package_of(SEED, setting.MICROBATCH)
    batches = CLUSTERS * (QUICK_UPDATES if quick else UPDATES)
    data = setting.windows(setting.text(False), setting.MICROBATCH * M * batches, SEED + 1)
    request = rn.JobRequest(
        package,
        data,
        optimizer=setting.optimizer_of("adamw", batches // CLUSTERS),
        microbatch_size=setting.MICROBATCH,
        microbatches_per_update=M,
        updates_per_round=KAPPA,
        stages=STAGES,
        clusters=CLUSTERS,
        seed=SEED,
        checkpoint=False,
    )
    rows: dict[str, Any] = {}
    goals = []
    for way, (plan, trained, seconds) in _swarm(request, (FIXED,) if quick else (FIXED, MEASURED)).items():
        row = _compared(package, trained, _simulation(package, request, data, plan, batches))
        rows[f"τ {way}"] = row | {
            "κ": [cluster.updates_per_round for cluster in plan],
            "layers": [[(stage.lo, stage.hi) for stage in cluster.stages] for cluster in plan],
            "τ, at most": [[stage.staleness for stage in cluster.stages] for cluster in plan],
            "seconds": seconds,
        }
        goal = f"loss of a real swarm with τ {way}, off the simulation's"
        goals.append(Goal(goal, abs(row["gap %"]), "%", "<= 1"))
    return rows, goals


def _compared(package: Package, trained: dict[str, Tensor], simulated: dict[str, Tensor]) -> dict[str, Any]:
    found, expected = setting.held_out_loss(trained), setting.held_out_loss(simulated)
    apart = [float((trained[n] - weight).norm() / weight.norm()) for n, weight in simulated.items()]
    return {
        "swarm": found,
        "simulation": expected,
        "untrained": setting.held_out_loss(package.weights),
        "gap %": 100 * (found / expected - 1),
        "weights apart": max(apart),
        "unequal tensors": sum(not torch.equal(trained[n], weight) for n, weight in simulated.items()),
    }


class Finished(NamedTuple):
    """What the planner planned, the finished weights, and how long it took from the request on."""

    plan: tuple[ClusterPlan, ...]
    weights: dict[str, Tensor]
    seconds: float


def _swarm(request: rn.JobRequest, ways: Sequence[str]) -> dict[str, Finished]:
    """One job after the other, each with τ chosen in another way."""
    peers, found = CLUSTERS * STAGES, {}
    with tempfile.TemporaryDirectory(prefix="penalty-") as folder:
        swarm = LocalSwarm(Path(folder), peers, more=["--epoch", str(EPOCH_S)])
        with swarm, rn.connect(swarm.bootstrap.address) as connection:
            lending = lambda: sum(bool(peer["memory_bytes"]) for peer in connection.peers())  # noqa: E731
            wait_until(lambda: lending() == peers, START_S, "all peers have measured themselves")
            for way in ways:
                found[way] = _finished(connection, replace(request, staleness=way))
    return found


def _finished(connection: Swarm, request: rn.JobRequest) -> Finished:
    """Train the job under one plan from its first batch to its last.

    On a busy machine a peer may be silent for so long that the others go on without it; then once more.
    """
    for attempt in range(TRIES):
        began_s = time.monotonic()
        job = connection.submit_request(replace(request, name=f"attempt {attempt}"))
        kappas = wait_until(partial(_kappas, job), TRAIN_S, "the first round is averaged")
        planned = job.status()
        wait_until(lambda: job.status().over, TRAIN_S, "the job is over")  # noqa: B023 (in the iteration)
        last = job.status()
        if last.phase is not JobPhase.DONE:
            raise RuntimeError(f"the job ended as {last.phase.value}: {last.reason}")
        if last.lineage[-1] == (planned.generation, 0):
            return Finished(_plan(planned, kappas), job.result(timeout_s=60), time.monotonic() - began_s)
    raise RuntimeError(f"in {TRIES} attempts a plan was given up before its end; is the machine busy?")


def _kappas(job: Job) -> list[int]:
    """Updates of each cluster in one round, by the timelines of their first stages; [] before the first."""
    progress = job.status()
    if progress.over:
        raise RuntimeError(f"the job ended as {progress.phase.value}: {progress.reason}")
    if not progress.batches_done:
        return []
    firsts = [line for line in job.trace(TRAIN_S).stages if line.stage == 0]
    found = [_kappa(line.operations) for line in sorted(firsts, key=lambda line: line.cluster)]
    return found if len(found) == CLUSTERS and all(found) else []


def _kappa(operations: Sequence[Span]) -> int:
    averaged = [place for place, span in enumerate(operations) if span.kind == "A"]
    if not averaged:
        return 0
    last = averaged[-1]
    updates = max(span.number for span in operations[:last] if span.kind == "|") + 1
    return updates // (operations[last].number + 1)


def _plan(progress: Progress, kappas: Sequence[int]) -> tuple[ClusterPlan, ...]:
    return tuple(
        ClusterPlan(
            tuple(
                StageAssignment(PeerId(stage.peer), stage.lo, stage.hi, stage.staleness_bound or 0)
                for stage in cluster.stages
            ),
            kappa,
        )
        for cluster, kappa in zip(progress.clusters, kappas, strict=True)
    )


def _simulation(
    package: Package,
    request: rn.JobRequest,
    data: tuple[Tensor, Tensor],
    plan: tuple[ClusterPlan, ...],
    batches: int,
) -> dict[str, Tensor]:
    """The weights that the same job ends with in virtual time."""
    x, y = data
    trainers = [[_trainer(package, request, stage) for stage in cluster.stages] for cluster in plan]

    def names(lo: int, hi: int) -> list[str]:
        part = stage_program(package.program, lo, hi)
        return sorted({*part.params, *part.mutable_buffers})

    train_clusters(
        plan,
        trainers,
        lambda indices: {"x0": x[list(indices)], "y0": y[list(indices)]},
        names,
        order=DataOrder(len(x), request.microbatch_size, M, request.seed),
        shares=Shares(0, batches, tuple(cluster.updates_per_round for cluster in plan)),
    )
    return {name: weight.detach() for trainer in trainers[0] for name, weight in trainer.params.items()}


def _trainer(package: Package, request: rn.JobRequest, place: StageAssignment) -> StageTrainer:
    stage = stage_program(package.program, place.lo, place.hi)
    return StageTrainer(
        StageComputation(stage),
        weights_of(package, stage),
        {},
        optimizer=request.optimizer,
        microbatches_per_update=M,
        staleness=place.staleness,
        is_last=stage.is_last,
    )
