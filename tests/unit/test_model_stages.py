"""A model cut into stages trains exactly as the whole one, which trains exactly as eager PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ravnest_p2p.model import Package, StageComputation, StageProgram, capture, node_seed, ops, split
from tests.unit.model_zoo import CASES, Case, make

Result = tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]


def captured(name: str) -> tuple[Case, Package]:
    case = make(name)
    return case, capture(case.model, case.inputs, loss=case.loss, example_labels=case.labels)


def fields(case: Case) -> dict[str, Tensor]:
    named = {f"x{i}": t for i, t in enumerate(case.inputs)}
    return named | {f"y{i}": t for i, t in enumerate(case.labels)}


def run_stages(
    stages: Sequence[StageProgram], weights: Mapping[str, Tensor], data: Mapping[str, Tensor], seed: int
) -> Result:
    """Forward through all stages, backward through them in reverse; gradients cross as plain tensors."""
    grads: dict[str, Tensor] = {}
    updated: dict[str, Tensor] = {}
    runs = []
    carried: tuple[Tensor, ...] = ()
    for stage in stages:
        params = {n: weights[n].clone().requires_grad_() for n in stage.params}
        buffers = {n: weights[n].clone() for n in stage.buffers}
        received = [
            t.detach().clone().contiguous().requires_grad_(spec.differentiable)
            for t, spec in zip(carried, stage.receives, strict=True)
        ]
        carried = StageComputation(stage).forward(params, buffers, received, data, seed)
        runs.append((stage, params, received, carried))
        updated.update(buffers)
    backward: list[Tensor | None] = [torch.ones(())]
    for stage, params, received, sent in reversed(runs):
        flowing = [i for i, spec in enumerate(stage.sends) if spec.differentiable]
        outputs = [sent[i] for i in flowing]
        wanted = [*params.values(), *(t for t in received if t.requires_grad)]
        given = torch.autograd.grad(outputs, wanted, [backward[i] for i in flowing], allow_unused=True)
        grads.update({n: g for n, g in zip(params, given, strict=False) if g is not None})
        rest = iter(given[len(params) :])
        backward = [next(rest) if t.requires_grad else None for t in received]
        backward = [None if g is None else g.clone().contiguous() for g in backward]
    return runs[-1][3][0].detach(), grads, updated


class SeededCalls(TorchFunctionMode):
    """Reseeds torch before each random call of eager code, as the program's random nodes do."""

    def __init__(self, seed: int, nodes: Sequence[int]) -> None:
        super().__init__()
        self._seeds = iter([node_seed(seed, index) for index in nodes])

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.nn.functional.dropout:
            torch.manual_seed(next(self._seeds))
        return func(*args, **(kwargs or {}))


def run_eager(case: Case, package: Package, seed: int) -> Result:
    model = copy.deepcopy(case.model)
    random_nodes = [
        i
        for i, node in enumerate(package.program.nodes)
        if node.op in ops.RANDOM_OPS and "attention" not in node.op
    ]
    with SeededCalls(seed, random_nodes):
        loss = case.loss(model(*case.inputs), *case.labels)
    loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), grads, dict(model.named_buffers())


def assert_same(left: Result, right: Result) -> None:
    assert torch.equal(left[0], right[0])
    assert left[1].keys() == right[1].keys()
    for name, gradient in left[1].items():
        assert torch.equal(gradient, right[1][name]), name
    for name, buffer in left[2].items():
        assert torch.equal(buffer, right[2][name]), name


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_stages_equal_eager_to_the_last_bit(name: str, stages: int) -> None:
    case, package = captured(name)
    layers = len(package.layers)
    if stages > layers:
        pytest.skip(f"{name} has {layers} layers")
    cuts = [layers * s // stages for s in range(1, stages)]
    found = run_stages(split(package.program, cuts), package.weights, fields(case), seed=7)
    assert_same(found, run_eager(case, package, seed=7))
