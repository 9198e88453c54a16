"""Plans over random swarms and jobs: always valid or waiting with a reason, the same for every peer."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from ravnest_p2p.core.planning.cost import stage_need_bytes, staleness_limit
from ravnest_p2p.core.planning.cuts import RECOMPUTE_WORK, LayerTable, stage_cuts, stage_s
from ravnest_p2p.core.planning.overlap import OVERLAPS
from ravnest_p2p.core.planning.planner import make_plan
from ravnest_p2p.core.planning.recompute import CHECKPOINTS
from ravnest_p2p.core.planning.resume import resume_point
from ravnest_p2p.core.types import (
    Capability,
    Coordinate,
    Fence,
    JobId,
    JobPhase,
    JobSpec,
    JobStatus,
    LayerCost,
    PeerId,
    Piece,
    Plan,
)
from tests.unit.planning_cases import LEADER, MB, peer, piece, planned, spec

JOBS = [JobId(letter * 64) for letter in "abc"]

capabilities = st.builds(
    lambda name, memory, flops, bps, x, online: replace(
        peer(f"p{name:02d}", memory_mb=memory, flops=flops, bps=bps, online=online),
        coordinate=Coordinate((x, 0.0), 0.002, 0.3),
    ),
    st.integers(0, 30),
    st.sampled_from([0, 310, 400, 700, 2000, 8000]),
    st.sampled_from([0.0, 1e8, 1e9, 1.7e9, 1e11]),
    st.sampled_from([0.0, 1e6, 2e7, 1e9]),
    st.sampled_from([0.0, 0.01, 0.3]),
    st.sampled_from([True, True, True, False]),
)
swarms = st.lists(capabilities, max_size=9, unique_by=lambda c: c.peer)
layer_costs = st.builds(
    LayerCost,
    st.sampled_from([0.0, 1e6, 1e9, 3e9]),
    st.sampled_from([0, MB, 40 * MB]),
    st.sampled_from([0, MB, 20 * MB]),
    st.sampled_from([0, 1000, MB]),
)


@st.composite
def specs(draw: st.DrawFn) -> JobSpec:
    base = spec(
        m=draw(st.integers(1, 8)),
        kappa=draw(st.integers(1, 10)),
        stages=draw(st.integers(0, 4)),
        clusters=draw(st.integers(0, 3)),
        staleness_bound=draw(st.integers(0, 8)),
        total_batches=100,
        optimizer=draw(st.sampled_from(["sgd", "adamw"])),
        checkpoint=draw(st.sampled_from(CHECKPOINTS)),
        overlap=draw(st.sampled_from(OVERLAPS)),
    )
    return replace(base, layers=tuple(draw(st.lists(layer_costs, min_size=1, max_size=8))))


@st.composite
def statuses_after(draw: st.DrawFn, plan: Plan, jobs: dict[JobId, JobSpec]) -> dict[JobId, JobStatus]:
    """Any report that may follow on a plan, pieces by members and strangers among them."""
    statuses: dict[JobId, JobStatus] = {}
    for job in plan.jobs:
        layers = len(jobs[job.job].layers)
        holders = [*job.peers, *job.standbys, PeerId("gone")]
        pieces: list[Piece] = []
        for _ in range(draw(st.integers(0, 4))):
            lo = draw(st.integers(0, layers - 1))
            done = job.batches_done + 4 * draw(st.integers(0, 2))
            held = draw(st.lists(st.sampled_from(holders), max_size=3))
            pieces.append(
                piece(lo, draw(st.integers(lo + 1, layers)), done, *held, version=draw(st.integers(0, 3)))
            )
        phase = draw(st.sampled_from(list(JobPhase)))
        generation = draw(st.sampled_from([None, job.generation]))
        statuses[job.job] = JobStatus(job.job, phase, generation, "", tuple(pieces))
    return statuses


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_every_plan_is_valid_or_says_why_it_waits(data: st.DataObject) -> None:
    jobs = {job: data.draw(specs()) for job in JOBS[: data.draw(st.integers(1, 3))]}
    previous: Plan | None = None
    statuses: dict[JobId, JobStatus] = {}
    for epoch in range(1, 4):
        swarm = data.draw(swarms)
        plan = planned(swarm, jobs, statuses=statuses, previous=previous, epoch=epoch)
        online = {c.peer for c in swarm if c.online}
        for job in plan.jobs:
            assert job.clusters or job.reason
            if job.generation[:2] == plan.fence:
                assert set(job.peers) <= online
                assert all(set(p.holders) <= online for p in job.pieces)
                assert set(job.standbys) <= online - set(job.peers)
        statuses = data.draw(statuses_after(plan, jobs))
        previous = plan


@settings(max_examples=60, deadline=None)
@given(st.data(), swarms, specs(), specs())
def test_order_of_knowledge_does_not_matter(
    data: st.DataObject, swarm: list[Capability], a: JobSpec, b: JobSpec
) -> None:
    jobs = dict(zip(JOBS, (a, b), strict=False))
    first = planned(swarm, jobs)
    statuses = data.draw(statuses_after(first, jobs))
    shuffled_swarm = data.draw(st.permutations(swarm))
    shuffled = {
        job: replace(statuses[job], pieces=tuple(data.draw(st.permutations(statuses[job].pieces))))
        for job in data.draw(st.permutations(list(statuses)))
    }
    assert planned(shuffled_swarm, jobs) == first
    assert planned(swarm, jobs, statuses=statuses, previous=first, epoch=2) == planned(
        shuffled_swarm, jobs, statuses=shuffled, previous=first, epoch=2
    )


@settings(max_examples=60, deadline=None)
@given(swarms, swarms, specs())
def test_what_runs_is_never_moved(before: list[Capability], after: list[Capability], job: JobSpec) -> None:
    jobs = {JOBS[0]: job}
    first = planned(before, jobs)
    running = {j.job: JobStatus(j.job, JobPhase.RUNNING, j.generation) for j in first.jobs if j.clusters}
    second = planned(after, jobs, statuses=running, previous=first, epoch=2)
    for plan in first.jobs:
        if plan.clusters:
            assert plan in second.jobs


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 5), st.integers(1, 6), st.integers(1, 3), st.sampled_from(["a", "b", "dead"])
        ),
        max_size=12,
    )
)
def test_resume_point_covers_all_layers_and_is_the_newest(
    drawn: list[tuple[int, int, int, str]],
) -> None:
    layers = 6
    pieces = [piece(lo, hi, rounds, who) for lo, hi, rounds, who in drawn if lo < hi]
    live = {PeerId("a"), PeerId("b")}
    held = {
        rounds: {
            n for p in pieces if p.batches_done == rounds and live & set(p.holders) for n in range(p.lo, p.hi)
        }
        for rounds in (1, 2, 3)
    }
    complete = [rounds for rounds, covered in held.items() if len(covered) == layers]
    found = resume_point(pieces, live, layers)
    assert (found is None) == (not complete)
    if found is not None:
        batches_done, _, chosen = found
        assert batches_done == max(complete)
        assert {n for p in chosen for n in range(p.lo, p.hi)} == set(range(layers))
        assert all(p.batches_done == batches_done and live.issuperset(p.holders) for p in chosen)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(layer_costs, min_size=1, max_size=7),
    st.lists(capabilities, min_size=1, max_size=4),
    st.integers(1, 2000),
    st.integers(1, 8),
    st.sampled_from([0.0, 0.03, 0.5]),
)
def test_cuts_are_optimal(
    layers: list[LayerCost], chain: list[Capability], mb_each: int, longest_plain: int, tolerance: float
) -> None:
    table = LayerTable(layers)

    def recomputes(stage: int, lo: int, hi: int) -> bool:
        return hi - lo + stage > longest_plain

    def need(stage: int, lo: int, hi: int) -> int:
        return (hi - lo) * mb_each * MB * (2 if stage == 0 else 1)

    def cost(ranges: list[tuple[int, int]]) -> tuple[float, int] | None:
        pairs = list(zip(chain, ranges, strict=True))
        if any(need(s, *r) > c.memory_bytes or c.flops < 1 for s, (c, r) in enumerate(pairs)):
            return None
        factors = [RECOMPUTE_WORK if recomputes(s, *r) else 1.0 for s, r in enumerate(ranges)]
        slowest_s = max(stage_s(table, c, *r, factor) for (c, r), factor in zip(pairs, factors, strict=True))
        return slowest_s, sum(table.cut_bytes(lo) for lo, _ in ranges)

    every = [
        list(zip((0, *inner), (*inner, len(layers)), strict=True))
        for inner in combinations(range(1, len(layers)), len(chain) - 1)
    ]
    costs = [c for ranges in every if (c := cost(ranges)) is not None]
    found = stage_cuts(layers, chain, need=need, recomputes=recomputes, tolerance=tolerance)
    if found is None:
        assert not costs
        return
    reached = cost(found)
    assert reached is not None
    best_s = min(c[0] for c in costs)
    allowed_s = best_s * (1.0 + tolerance)
    assert reached[0] <= allowed_s * (1 + 1e-9)
    assert reached[1] <= min(c[1] for c in costs if c[0] <= allowed_s * (1 - 1e-9) or c[0] <= best_s)


@settings(max_examples=40, deadline=None)
@given(swarms, specs())
def test_leaders_in_a_partition_never_form_one_generation_of_different_members(
    swarm: list[Capability], job: JobSpec
) -> None:
    def leads(half: list[Capability]) -> Plan:
        return make_plan(
            swarm="swarm",
            fence=Fence(1, 0),
            leader=LEADER,
            seed=0,
            capabilities=half,
            jobs={JOBS[0]: job},
            statuses={},
            previous=None,
        )

    one, other = leads(swarm[::2]).jobs[0], leads(swarm[1::2]).jobs[0]
    assert (one.generation == other.generation) == (one == other)


@settings(max_examples=100, deadline=None)
@given(specs(), st.integers(0, 8))
def test_more_layers_never_need_less(job: JobSpec, tau: int) -> None:
    table, layers = LayerTable(job.layers), len(job.layers)
    tau = min(tau, staleness_limit(job))
    ranges = [(lo, hi) for lo in range(layers) for hi in range(lo + 1, layers + 1)]
    need = {r: stage_need_bytes(job, table, 0, 2, *r, tau) for r in ranges}
    for lo, hi in ranges:
        assert lo == 0 or need[lo - 1, hi] >= need[lo, hi]
        assert hi == layers or need[lo, hi + 1] >= need[lo, hi]


@settings(max_examples=100, deadline=None)
@given(st.lists(layer_costs, min_size=1, max_size=150), st.integers(1, 9))
def test_stretches_cover_the_model_and_are_worth_it(layers: list[LayerCost], window: int) -> None:
    table = LayerTable(layers)
    stretches = table.stretches(window)
    starts = list(stretches.starts)
    assert starts == sorted(set(starts))
    assert starts[0] == 0
    assert starts[-1] < len(layers)
    whole = (0, len(layers))
    taken = window * stretches.kept_bytes(*whole) + stretches.largest_bytes(*whole)
    assert taken <= table.activation_bytes(*whole)
