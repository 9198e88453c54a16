"""The trainer runs captured programs: what flows through a cut model is what flows through the whole one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from ravnest_p2p.core.types import OptimizerSpec
from ravnest_p2p.model import Package, StageComputation, stage_program
from ravnest_p2p.model.capture import capture
from ravnest_p2p.training import StageTrainer, averaging
from tests.unit.training_models import Pipeline, classes, copies

SPEC = OptimizerSpec("adamw", 1e-2, weight_decay=0.1, clip_norm=None)


@pytest.fixture(scope="module")
def package() -> Package:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 10), nn.BatchNorm1d(10), nn.Tanh(), nn.Dropout(0.2), nn.Linear(10, 10)]
    net = nn.Sequential(*layers, nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 4))
    batch = classes(1, 0)[0]
    return capture(net, (batch["x"],), loss=nn.functional.cross_entropy, example_labels=(batch["y"],))


def trainers_of(package: Package, bounds: Sequence[int], m: int, taus: Sequence[int]) -> list[StageTrainer]:
    edges = [0, *bounds, len(package.program.layer_bounds)]
    trainers = []
    for lo, hi, tau in zip(edges[:-1], edges[1:], taus, strict=True):
        stage = stage_program(package.program, lo, hi)
        trainers.append(
            StageTrainer(
                StageComputation(stage),
                copies({name: package.weights[name] for name in stage.params}),
                copies({name: package.weights[name] for name in stage.buffers}),
                optimizer=SPEC,
                microbatches_per_update=m,
                staleness=tau,
                is_last=stage.is_last,
            )
        )
    return trainers


def data(count: int) -> list[dict[str, Tensor]]:
    return [{"x0": batch["x"], "y0": batch["y"]} for batch in classes(count, 1)]


def state_of(trainers: Sequence[StageTrainer]) -> dict[str, Tensor]:
    return {name: value for t in trainers for name, value in {**t.params, **t.buffers}.items()}


def test_cut_without_staleness_equals_whole(package: Package) -> None:
    layers = len(package.program.layer_bounds)
    states = []
    for bounds in [(), (layers // 2,), (layers // 3, 2 * layers // 3)]:
        taus = [0] * (len(bounds) + 1)
        trainers = trainers_of(package, bounds, 3, taus)
        Pipeline(trainers, data(30), taus, 3).run()
        states.append(state_of(trainers))
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(state[name], states[0][name]) for name in state)


def test_averaging_in_flight_leaves_captured_graphs_whole(package: Package) -> None:
    layers, taus, m = len(package.program.layer_bounds), (4, 2, 0), 4
    bounds = (layers // 3, 2 * layers // 3)
    untouched = trainers_of(package, bounds, m, taus)
    Pipeline(untouched, data(32), taus, m).run()
    averaged = trainers_of(package, bounds, m, taus)

    def average(s: int) -> None:
        params, buffers = averaged[s].params, averaged[s].buffers
        flat = averaging.gather(params, buffers, [*params, *buffers])
        averaging.scatter(flat, params, buffers, [*params, *buffers])

    Pipeline(averaged, data(32), taus, m, after_step=average).run()
    expected, found = state_of(untouched), state_of(averaged)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
