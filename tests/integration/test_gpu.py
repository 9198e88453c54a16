"""Stages on a GPU behind its walls and on a CPU train one model, in one cluster and in two; needs CUDA."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ravnest_p2p as rn
from ravnest_p2p.core.types import OptimizerSpec
from ravnest_p2p.model import StageComputation, capture, stage_program
from ravnest_p2p.testing.local_swarm import LocalSwarm
from ravnest_p2p.training import StageTrainer
from tests.integration.swarms import (
    final_tensors,
    small_data,
    small_model,
    small_request,
    status,
    wait_done,
    wait_lending,
)
from tests.unit import model_zoo

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

OPTIMIZERS = (
    OptimizerSpec("sgd", 0.05, momentum=0.9, clip_norm=1.0),
    OptimizerSpec("adamw", 1e-2, clip_norm=1.0),
    OptimizerSpec("muon", 2e-2, momentum=0.95, adamw_lr=3e-3),
    OptimizerSpec("lamb", 1e-2),
)


def losses_on(device: torch.device, optimizer: OptimizerSpec) -> list[float]:
    """Of some updates of a whole small model."""
    case = model_zoo.make("mlp")
    package = capture(case.model, case.inputs, loss=case.loss, example_labels=case.labels)
    stage = stage_program(package.program, 0, len(package.program.layer_bounds))
    trainer = StageTrainer(
        StageComputation(stage, device),
        {name: package.weights[name].clone().to(device) for name in stage.params},
        {name: package.weights[name].clone().to(device) for name in stage.buffers},
        optimizer=optimizer,
        microbatches_per_update=2,
        staleness=0,
        is_last=True,
        matrices=[name for name in stage.params if name.endswith("weight")],
    )
    data = {"x0": case.inputs[0], "y0": case.labels[0]}
    losses = []
    for i in range(8):
        losses.append(trainer.forward(i, (), data, i, speculative=False).loss)
        trainer.backward(i, ())
        if i % 2:
            trainer.step()
    return [loss for loss in losses if loss is not None]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda spec: spec.name)
def test_a_gpu_learns_what_a_cpu_learns(optimizer: OptimizerSpec) -> None:
    # Muon multiplies in bfloat16, and devices round differently.
    allowed = 5e-2 if optimizer.name == "muon" else 1e-3
    on_cpu = losses_on(torch.device("cpu"), optimizer)
    assert losses_on(torch.device("cuda"), optimizer) == pytest.approx(on_cpu, rel=allowed)


def test_a_cpu_and_a_gpu_train_together(tmp_path: Path, requester_home: Path) -> None:
    each = [["--device", "cpu"], ["--device", "cuda"]]
    swarm = LocalSwarm(tmp_path, 2, each=each, more=["--epoch", "900"])
    with swarm, rn.connect(swarm.bootstrap.address) as connection:
        wait_lending(connection, swarm.peers)
        kinds = [peer["devices"][0]["kind"] for peer in connection.peers() if peer["devices"]]
        assert sorted(kinds) == ["cpu", "cuda"]
        job = connection.submit_request(small_request(stages=2, clusters=1))
        wait_done(job)
        assert len(status(connection, job.id)["lineage"]) == 1, "nothing broke"
        weights = job.result()
    x, y = small_data()
    model = small_model()
    before = float(torch.nn.functional.cross_entropy(model(x), y).detach())
    model.load_state_dict(weights)
    assert float(torch.nn.functional.cross_entropy(model.eval()(x), y).detach()) < 0.7 * before


@pytest.mark.parametrize(("overlap", "averaging"), [("never", "parameters"), ("always", "int8")])
def test_clusters_on_a_cpu_and_on_a_gpu_average_to_one_model(
    overlap: str, averaging: str, tmp_path: Path, requester_home: Path
) -> None:
    swarm = LocalSwarm(tmp_path, 2, each=[["--device", "cpu"], ["--device", "cuda"]], more=["--epoch", "900"])
    with swarm, rn.connect(swarm.bootstrap.address) as connection:
        wait_lending(connection, swarm.peers)
        how = {"overlap": overlap, "averaging": averaging, "updates_per_round": 7, "passes": 20}
        job = connection.submit_request(small_request(clusters=2, **how))
        done = wait_done(job)
        weights = job.result()
    copies = final_tensors(swarm.peers, job.id, done["total_batches"], ("param", "buffer"))
    assert copies.keys() == {name for name, value in weights.items() if value.is_floating_point()}
    for name, of_blobs in copies.items():
        assert len(of_blobs) == 2, f"{name}: both clusters saved it"
        assert all(torch.equal(value, weights[name]) for value in of_blobs.values()), name
