"""Builders for planning tests: peers, jobs and plans with one line each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ravnest_p2p.core.planning.check import check_plan
from ravnest_p2p.core.planning.planner import make_plan
from ravnest_p2p.core.types import (
    MICROBATCH_FLOPS,
    BlobHash,
    Capability,
    Coordinate,
    Device,
    Fence,
    JobId,
    JobPhase,
    JobPlan,
    JobSpec,
    JobStatus,
    LayerCost,
    OptimizerSpec,
    PeerId,
    Piece,
    Plan,
    Reachability,
    WeightsPart,
)

MB = 1_000_000
JOB = JobId("a" * 64)
OTHER = JobId("b" * 64)
LEADER = PeerId("leader")


def peer(
    name: str,
    *,
    memory_mb: int = 4000,
    flops: float = 1e10,
    bps: float = 1e8,
    at_s: tuple[float, float] = (0.0, 0.0),
    reliability: float = 0.9,
    online: bool = True,
    microbatch_flops: float = MICROBATCH_FLOPS,
) -> Capability:
    return Capability(
        peer=PeerId(name),
        version="0.1.0",
        devices=(Device("cpu", memory_mb * MB, flops),),
        up_bps=bps,
        down_bps=bps,
        coordinate=Coordinate(at_s, 0.001, 0.2),
        reachability=Reachability.PUBLIC,
        uptime_s=3600.0,
        reliability=reliability,
        online=online,
        microbatch_flops=microbatch_flops,
    )


def peers(count: int, **settings: object) -> list[Capability]:
    return [peer(f"p{n}", **settings) for n in range(count)]  # type: ignore[arg-type]


def spec(
    layers: int = 8,
    *,
    param_mb: int = 4,
    m: int = 4,
    kappa: int = 4,
    stages: int = 0,
    clusters: int = 0,
    staleness_bound: int = 8,
    total_batches: int = 1000,
    optimizer: str = "adam",
    activation_mb: int = 1,
    checkpoint: str = "never",
    overlap: str = "auto",
) -> JobSpec:
    return JobSpec(
        name="job",
        program=BlobHash("1" * 64),
        weights=(WeightsPart(0, layers, BlobHash("2" * 64)),),
        fields=(),
        samples=1000,
        layers=tuple(LayerCost(1e9, param_mb * MB, activation_mb * MB, 100_000) for _ in range(layers)),
        microbatch_size=8,
        microbatches_per_update=m,
        updates_per_round=kappa,
        total_batches=total_batches,
        seed=1,
        optimizer=OptimizerSpec(optimizer, 0.001),
        stages=stages,
        clusters=clusters,
        staleness_bound=staleness_bound,
        checkpoint=checkpoint,
        overlap=overlap,
    )


def piece(lo: int, hi: int, batches_done: int, *holders: str, version: int = 4, blob: str = "") -> Piece:
    name = blob or f"{lo}-{hi}@{batches_done}"
    return Piece(lo, hi, batches_done, version, BlobHash(name), tuple(PeerId(h) for h in holders))


def planned(
    capabilities: Sequence[Capability],
    jobs: Mapping[JobId, JobSpec],
    *,
    statuses: Mapping[JobId, JobStatus] | None = None,
    previous: Plan | None = None,
    epoch: int = 1,
) -> Plan:
    """A plan, after it has passed the check of a follower that knows the same."""
    plan = make_plan(
        swarm="swarm",
        fence=Fence(epoch, 0),
        leader=LEADER,
        seed=0,
        capabilities=capabilities,
        jobs=jobs,
        statuses=statuses or {},
        previous=previous,
    )
    check_plan(plan, capabilities=capabilities, jobs=jobs, previous=previous)
    return plan


def status(plan: JobPlan, phase: JobPhase, *pieces: Piece) -> dict[JobId, JobStatus]:
    return {plan.job: JobStatus(plan.job, phase, plan.generation, "", pieces)}


def shape(plan: JobPlan) -> list[list[str]]:
    return [[stage.peer for stage in cluster.stages] for cluster in plan.clusters]
