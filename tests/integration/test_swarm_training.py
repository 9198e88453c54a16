"""Whole swarms train: bit for bit as plain PyTorch, in the order of the closed form, every batch once."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ravnest_p2p as rn
from ravnest_p2p.client.swarm import Swarm
from ravnest_p2p.core.cadence import TOLD_IN
from ravnest_p2p.core.ledger import DataOrder
from ravnest_p2p.core.pipeline.schedule import closed_form
from ravnest_p2p.core.pipeline.timeline import StageTimeline
from ravnest_p2p.core.pipeline.window import paper_bound
from ravnest_p2p.core.types import JobPhase, OptimizerSpec
from ravnest_p2p.testing.local_swarm import LocalSwarm, PeerProcess, wait_until
from tests.integration.swarms import (
    TRAIN_S,
    Mirror,
    final_tensors,
    job_folder,
    members,
    small_data,
    small_model,
    small_request,
    status,
    wait_done,
    wait_lending,
)

pytestmark = pytest.mark.timeout(240)

LENDING = 4


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory, requester_home: Path) -> Iterator[LocalSwarm]:
    # A long epoch, since the next one would plan anew whether or not a newcomer was noticed.
    with LocalSwarm(tmp_path_factory.mktemp("training"), LENDING, more=["--epoch", "900"]) as swarm:
        with rn.connect(swarm.bootstrap.address) as connection:
            wait_lending(connection, swarm.peers)
        yield swarm


@pytest.fixture
def connection(swarm: LocalSwarm) -> Iterator[Swarm]:
    with rn.connect(swarm.peers[0].address, swarm.bootstrap.address) as connection:
        yield connection


def plain_pytorch(request: rn.JobRequest, updates: int, model: nn.Module | None = None) -> dict[str, Tensor]:
    """The same batches, one after another, in one process."""
    model = model or small_model().train()
    inputs, labels = small_data()
    spec, m = request.optimizer, request.microbatches_per_update
    moments = {"betas": spec.betas, "eps": spec.eps}
    optimizers: list[torch.optim.Optimizer]
    if spec.name == "sgd":
        optimizers = [torch.optim.SGD(model.parameters(), lr=spec.lr, momentum=spec.momentum, fused=True)]
    elif spec.name == "muon":
        hidden = [model[3].weight, model[6].weight]
        rest = [p for p in model.parameters() if not any(p is matrix for matrix in hidden)]
        optimizers = [
            torch.optim.Muon(hidden, lr=spec.lr, momentum=spec.momentum, weight_decay=0.0),
            torch.optim.AdamW(rest, lr=spec.adamw_lr, weight_decay=0.0, **moments, fused=True),
        ]
    else:
        optimizers = [torch.optim.Adam(model.parameters(), lr=spec.lr, **moments, fused=True)]
    order = DataOrder(len(labels), request.microbatch_size, m, seed=request.seed)
    for batch in range(updates):
        model.zero_grad()
        for k in range(m):
            rows = order.microbatch(batch, k)
            loss = torch.nn.functional.cross_entropy(model(inputs[rows]), labels[rows])
            (loss / m).backward()
        for optimizer in optimizers:
            optimizer.step()
    return dict(model.state_dict())


@pytest.mark.parametrize(
    ("stages", "staleness_bound", "optimizer"),
    [
        (1, 8, rn.Adam(lr=3e-3)),
        (2, 0, rn.SGD(lr=0.05, momentum=0.9)),
        pytest.param(2, 0, rn.Muon(), marks=pytest.mark.slow),
    ],
    ids=["one stage, Adam", "two synchronous stages, SGD", "two synchronous stages, Muon"],
)
def test_training_without_staleness_is_plain_pytorch_bit_for_bit(
    connection: Swarm, stages: int, staleness_bound: int, optimizer: OptimizerSpec
) -> None:
    request = small_request(stages=stages, staleness_bound=staleness_bound, optimizer=optimizer)
    job = connection.submit_request(request)
    found = wait_done(job)
    assert found["total_batches"] >= 50
    assert found["batches_done"] == found["total_batches"]
    expected = plain_pytorch(request, found["total_batches"])
    trained = job.result(timeout_s=30)
    assert trained.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(trained[name], expected[name])] == []


def test_a_weight_of_first_and_last_stage_trains_as_in_plain_pytorch(connection: Swarm) -> None:
    """Through a stage between, which only hands it on."""
    request = small_request(stages=3, staleness_bound=0, passes=2, optimizer=rn.Adam(lr=3e-3))
    request = replace(request, model=Mirror())
    job = connection.submit_request(request)
    found = wait_done(job)
    expected = plain_pytorch(request, found["total_batches"], Mirror().train())
    trained = job.result(timeout_s=30)
    assert trained.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(trained[name], expected[name])] == []
    assert not torch.equal(trained["door.weight"], Mirror().door.weight)


def test_a_job_whose_boundary_is_compressed_trains_nearly_as_plain_pytorch(connection: Swarm) -> None:
    request = small_request(stages=2, staleness_bound=0, passes=2, compression="int8")
    # So slow that training does not make more of the difference: it is 0.0007 in one process.
    request = replace(request, model=small_model(width=128), optimizer=rn.SGD(lr=0.01))
    job = connection.submit_request(request)
    found = wait_done(job)
    expected = plain_pytorch(request, found["total_batches"], small_model(width=128).train())
    trained = job.result(timeout_s=30)
    weights = [name for name in expected if name.endswith("weight")]
    off = {name: float((trained[name] - expected[name]).norm() / expected[name].norm()) for name in weights}
    assert 0 < max(off.values()) < 0.003, off


def test_a_sample_that_is_not_a_number_is_left_out_counted_and_named(connection: Swarm) -> None:
    inputs, labels = small_data()
    inputs[77, 3] = float("nan")
    optimizer = rn.AdamW(lr=3e-3, clip_norm=0.5, clip_scope="model")
    request = replace(small_request(stages=2, passes=3, optimizer=optimizer), data=(inputs, labels))
    job = connection.submit_request(request)
    found = wait_done(job)
    assert (found["phase"], found["skipped"]) == ("done", request.passes)
    assert "the data (x0)" in found["skipped_why"]
    assert 77 in json.loads(f"[{found['skipped_why'].partition('(samples ')[2].partition(')')[0]}]")
    assert all(loss == loss for _, loss in found["losses"])
    assert len(found["losses"]) == found["total_batches"]
    trained = job.result(timeout_s=30)
    assert all(tensor.isfinite().all() for tensor in trained.values())
    lines = [line["text"] for line in job.logs()]
    assert any("left out as not finite: stage 0" in line for line in lines)


def test_a_job_that_may_leave_nothing_out_fails_with_the_place(connection: Swarm) -> None:
    inputs, labels = small_data()
    inputs[5, 0] = float("inf")
    request = replace(small_request(stages=2, nonfinite="stop"), data=(inputs, labels))
    job = connection.submit_request(request)
    failed = wait_until(lambda: (found := job.status()).over and found, TRAIN_S, "the job is over")
    assert failed.phase is JobPhase.FAILED
    assert 'the job says nonfinite="stop"' in failed.reason
    assert "the data (x0)" in failed.reason
    assert len(failed.lineage) == 1, "it is not tried again"


def stalenesses(connection: Swarm, swarm: LocalSwarm, job: str) -> list[tuple[PeerProcess, int]]:
    """Each stage's peer and τ, as soon as the plan is known."""
    found: dict[str, Any] = {}

    def planned() -> bool:
        found.update(status(connection, job))
        return bool(found["clusters"]) or found["phase"] == JobPhase.DONE.value

    wait_until(planned, TRAIN_S, "the job is planned")
    (cluster,) = found["clusters"]
    return [(swarm.of(s["peer"]), s["staleness_bound"]) for s in cluster["stages"]]


@pytest.mark.parametrize(
    ("staleness", "stages", "staleness_bound", "m", "updates_per_round"),
    [
        pytest.param("fixed", 2, 1, 1, 100, marks=pytest.mark.slow),
        pytest.param("fixed", 3, 2, 4, 2, marks=pytest.mark.slow),
        ("measured", 3, 6, 8, 2),
        ("adaptive", 3, 4, 4, 5),
    ],
)
def test_every_stage_trains_in_the_order_of_the_closed_form(
    connection: Swarm,
    swarm: LocalSwarm,
    staleness: str,
    stages: int,
    staleness_bound: int,
    m: int,
    updates_per_round: int,
) -> None:
    """m = 2τ₀ and m = τ₀; rounds end in the midst of it, since the pipeline does not drain."""
    request = small_request(
        stages=stages,
        staleness=staleness,
        staleness_bound=staleness_bound,
        microbatches_per_update=m,
        updates_per_round=updates_per_round,
    )
    job = connection.submit_request(request)
    stage_peers = stalenesses(connection, swarm, job.id)
    found = wait_done(job)
    taus = [tau for _, tau in stage_peers]
    assert taus[0] == staleness_bound
    assert taus[-1] == 0
    batches = found["total_batches"]
    of_stages = []
    for peer, bound in stage_peers:
        with (job_folder(peer, job.id) / "trace.csv").open() as file:
            rows = [tuple(map(int, row)) for row in csv.reader(file)]
        # Nothing crosses into the first batch, whatever its window.
        of_batches = [0, *(rows[u * m][3] for u in range(1, batches))]
        assert max(of_batches) <= bound
        expected = [
            (i, *closed_form(i, of_batches[i // m], m), of_batches[i // m]) for i in range(batches * m)
        ]
        assert [row[:3] for row in rows] == [row[:3] for row in expected], peer.name
        assert rows[m:] == expected[m:], f"{peer.name}: all micro-batches of a batch have its τ"
        if staleness == "fixed":
            assert set(of_batches[1:]) == {bound}
        if staleness == "adaptive":
            assert all(tau <= paper_bound(u) for u, tau in enumerate(of_batches))
        of_stages.append(of_batches)
    # A job that is over may be in no plan any more.
    for shown, of_batches in zip(
        (s for c in found["clusters"] for s in c["stages"]), of_stages, strict=False
    ):
        assert sum(shown["ahead"]) == batches * m
        assert len(shown["ahead"]) <= shown["staleness_bound"] + 1
        assert shown["crossed"] == sum(of_batches[1:])
    timeline = job.trace(last_s=300)
    assert timeline.left_out == {}
    assert [stage.peer for stage in timeline.stages] == [peer.peer for peer, _ in stage_peers]
    for stage, of_batches, (_, bound) in zip(timeline.stages, of_stages, stage_peers, strict=True):
        assert_timeline_of_a_whole_run(stage, of_batches, bound, m)


def assert_timeline_of_a_whole_run(stage: StageTimeline, of_batches: list[int], bound: int, m: int) -> None:
    """Every operation of the closed form, in an order that the schedule allows, one after the other."""
    expected, batches = set(), len(of_batches)
    for i in range(batches * m):
        forward, backward = closed_form(i, of_batches[i // m], m)
        expected |= {f"{forward}{'f' if forward < backward else 'F'}{i}", f"{backward}B{i}"}
    words = [span.word for span in stage.operations]
    assert {word for word in words if word[0].isdigit()} == expected
    assert [word for word in words if word[0] == "|"] == [f"|{u}" for u in range(batches)]
    assert [word for word in words if word[0] == "^"] == [f"^{u}" for u, tau in enumerate(of_batches) if tau]
    assert len(words) == len(set(words))
    at = {span.word: number for number, span in enumerate(stage.operations)}
    for i in range(bound + 1, batches * m):
        tau = of_batches[i // m] if i >= m else bound
        forward, backward = closed_form(i, tau, m)
        word = f"{forward}{'f' if forward < backward else 'F'}{i}"
        earlier = i - tau - 1
        assert at[f"{earlier // m}B{earlier}"] < at[word] < at[f"{backward}B{i}"]
    assert all(a.end_us <= b.start_us for a, b in pairwise(stage.operations))
    assert abs(stage.offset_us) < 100_000, "all peers have the clock of this computer"


@pytest.mark.parametrize(
    ("overlap", "averaging", "kappa"), [("never", "parameters", "fixed"), ("always", "int8", "adaptive")]
)
def test_two_clusters_average_to_one_model_and_the_requester_may_leave(
    swarm: LocalSwarm, overlap: str, averaging: str, kappa: str
) -> None:
    """As plainly as can be; and with all that a job may ask for at once."""
    all_at_once = kappa == "adaptive"
    how = {"overlap": overlap, "averaging": averaging, "kappa": kappa, "average_momentum": all_at_once}
    how["updates_per_round"] = 7
    request = small_request(stages=2, clusters=2, passes=40, optimizer=rn.AdamW(lr=3e-3), **how)
    with rn.connect(swarm.peers[0].address) as leaving:
        job_id = leaving.submit_request(request).id
    with rn.connect(swarm.peers[-1].address) as connection:
        job = connection.job(job_id)
        seen: dict[str, Any] = {}

        def over() -> bool:
            found = status(connection, job_id)
            if found["clusters"] and found["bytes_sent"]:
                seen.update(found)
            return job.status().over

        wait_until(over, TRAIN_S, "the job is over")
        done = status(connection, job_id)
        assert (done["phase"], done["reason"]) == ("done", "")
        assert done["batches_done"] == done["total_batches"] == 40 * 256 // 16
        assert done["samples"] == 40 * 256
        assert [first for _, first in done["lineage"]] == [0]
        assert seen["bytes_sent"] > 0
        assert [len(cluster["stages"]) for cluster in seen["clusters"]] == [2, 2]
        assert [s["phase"] for c in seen["clusters"] for s in c["stages"]] != []
        rounds = [{s.number for s in stage.spans if s.kind == ">r"} for stage in job.trace(1e5).stages]
        assert all(of_stage == rounds[0] for of_stage in rounds), "all stages average the same rounds"
        skipped = set(range(max(rounds[0]) + 1)) - rounds[0]
        assert bool(skipped) == all_at_once
        # A cluster that was measured far slower may have a κ too small to train beside a round.
        least = TOLD_IN if all_at_once else 0
        for cluster in seen["clusters"]:
            may = overlap == "always" and cluster["updates_per_round"] > least
            assert bool(cluster["overlap"]) == may, cluster
        beside = {cluster["cluster"]: cluster["overlap"] for cluster in seen["clusters"]}
        assert any(beside.values()) == (overlap == "always"), beside
        for stage in job.trace(1e5).stages:
            kinds = {span.kind for span in stage.operations}
            assert ("S" in kinds) == bool(beside[stage.cluster]), (stage.cluster, seen["clusters"])
            assert "A" in kinds
        result = job.result(timeout_s=30)
    peers = members(swarm, seen)
    copies = final_tensors(peers, job_id, done["total_batches"], ("param", "buffer"))
    averaged = {name for name, value in result.items() if value.is_floating_point()}
    assert averaged == copies.keys()
    for name, of_blobs in copies.items():
        assert len(of_blobs) >= 2, f"{name}: both clusters saved it"
        assert all(torch.equal(value, result[name]) for value in of_blobs.values()), name
    for name, of_blobs in final_tensors(peers, job_id, done["total_batches"], ("optim",)).items():
        first, *others = of_blobs.values()
        same = all(torch.equal(value, first) for value in others)
        assert name.endswith("/step") or same == (all_at_once and name.endswith("/exp_avg")), name


def test_every_peer_lists_all_peers_and_runs_one_p2pd(swarm: LocalSwarm) -> None:
    asking = {
        peer.name: subprocess.Popen(
            [sys.executable, "-m", "ravnest_p2p.cli.ravnest", "peers", "--json"],
            env={**os.environ, "RAVNEST_HOME": str(peer.home)},
            stdout=subprocess.PIPE,
        )
        for peer in swarm.all
    }
    answers = {name: process.communicate(timeout=60)[0] for name, process in asking.items()}
    everybody = {peer.peer for peer in swarm.all}
    assert len(everybody) == LENDING + 1
    for name, answer in answers.items():
        assert {entry["peer"] for entry in json.loads(answer)} == everybody, name
    for peer in swarm.all:
        assert len(peer.children("p2pd -")) == 1, peer.name


def test_a_job_that_waits_says_for_what_and_starts_when_it_is_there(
    swarm: LocalSwarm, connection: Swarm
) -> None:
    job = connection.submit_request(small_request(stages=LENDING + 1, passes=400))
    with pytest.raises(rn.UserFault, match="has not started"):
        job.trace()
    waiting = wait_until(
        lambda: (found := job.status()).phase is JobPhase.WAITING and "needs" in found.reason and found,
        30.0,
        "the job waits with its reason",
    )
    assert f"needs 1 cluster × {LENDING + 1} stages = {LENDING + 1} peers" in waiting.reason
    assert f"{LENDING} are online" in waiting.reason
    assert "start 1 more ravnestd" in waiting.reason
    swarm.add()
    wait_until(lambda: job.status().batches_done > 0, TRAIN_S, "the job trains")
    job.cancel()
    cancelled = wait_until(lambda: (found := job.status()).over and found, 10.0, "the job is cancelled")
    assert (cancelled.phase, cancelled.reason) == (JobPhase.CANCELLED, "cancelled by its requester")
    wait_until(
        lambda: not any(peer.children("daemon.worker") for peer in swarm.all), 15.0, "the workers ended"
    )
