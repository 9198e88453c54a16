"""A model cut into stages trains exactly as the whole one, which trains exactly as eager PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ravnest_p2p.core.errors import BlobError, FrameFormatError, PackageError
from ravnest_p2p.model import Package, StageComputation, StageProgram, capture, node_seed, ops, split_program
from tests.unit.model_zoo import CASES, Case, make

Result = tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]


@cache
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
    found = run_stages(split_program(package.program, cuts), package.weights, fields(case), seed=7)
    assert_same(found, run_eager(case, package, seed=7))


def test_micro_batches_in_flight_survive_an_update_of_the_buffers() -> None:
    case, package = captured("cnn")
    (stage,) = split_program(package.program, [])
    computation = StageComputation(stage)
    params = {n: package.weights[n].clone().requires_grad_() for n in stage.params}
    buffers = {n: package.weights[n].clone() for n in stage.buffers}
    data = fields(case)
    (first,) = computation.forward(params, buffers, (), data, 1)
    (second,) = computation.forward(params, buffers, (), data, 2)
    for buffer in buffers.values():
        buffer.mul_(0)
    alone, grads, _ = run_stages([stage], package.weights, data, 1)
    assert torch.equal(first, alone)
    assert not torch.equal(first, second)
    for name, gradient in zip(params, torch.autograd.grad(first, list(params.values())), strict=True):
        assert torch.equal(gradient, grads[name]), name
    torch.autograd.grad(second, list(params.values()))


def test_batch_statistics_are_held_by_one_stage_and_masks_by_many() -> None:
    _, package = captured("cnn")
    stages = split_program(package.program, range(1, len(package.layers)))
    mutable = [n for s in stages for n in s.mutable_buffers]
    assert sorted(mutable) == sorted(n for n in package.weights if "running" in n or "tracked" in n)
    held = [set(s.mutable_buffers) for s in stages if s.mutable_buffers]
    assert {frozenset(n.split(".")[0] for n in names) for names in held} == {
        frozenset({"norm1"}),
        frozenset({"norm2"}),
    }


def test_fields_are_read_where_they_are_used_and_never_carried() -> None:
    _, package = captured("gpt")
    stages = split_program(package.program, [4, 8])
    assert [s.data_inputs for s in stages] == [("x0",), (), ("y0",)]
    assert [(s.is_first, s.is_last) for s in stages] == [(True, False), (False, False), (False, True)]
    assert stages[-1].sends[0].shape == ()
    for left, right in pairwise(stages):
        assert left.sends == right.receives
        assert all(spec.differentiable for spec in left.sends)


def test_a_skip_connection_is_carried_through_the_stages_between() -> None:
    _, package = captured("residual")
    stages = split_program(package.program, range(1, len(package.layers)))
    carried = [s for s in stages if set(s.received_slots) & set(s.sent_slots)]
    assert carried
    assert max(len(s.receives) for s in stages) == 2


def test_masks_are_made_again_on_each_stage() -> None:
    _, package = captured("gpt_manual")
    for stage in split_program(package.program, range(1, len(package.layers))):
        assert all(spec.dtype == "float32" for spec in stage.receives)


def test_tied_weights_are_one_tensor() -> None:
    _, package = captured("gpt_tied")
    assert package.tied == (("tokens.weight", "head.weight"),)
    state = package.state_dict()
    assert state["head.weight"] is state["tokens.weight"]


@pytest.mark.parametrize("cuts", [[0], [99], [2, 2], [3, 2], [-1]])
def test_senseless_cuts_are_refused(cuts: list[int]) -> None:
    _, package = captured("cnn")
    with pytest.raises(PackageError, match="no stage of layers"):
        split_program(package.program, cuts)


def test_the_seed_decides_and_torchs_own_generator_is_left_alone() -> None:
    case, package = captured("cnn")
    (stage,) = split_program(package.program, [])
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    losses = [run_stages([stage], package.weights, fields(case), seed)[0] for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])
    assert len({node_seed(seed, index) for seed in range(50) for index in range(50)}) == 2500


def test_wrong_tensors_from_outside_are_refused_by_name() -> None:
    case, package = captured("mlp")
    first, last = split_program(package.program, [1])
    weights, data = package.weights, fields(case)
    with pytest.raises(BlobError, match="x0 is missing"):
        StageComputation(first).forward(weights, weights, (), {}, 0)
    with pytest.raises(BlobError, match=r"x0 is .* float64"):
        StageComputation(first).forward(weights, weights, (), {"x0": data["x0"].double()}, 0)
    with pytest.raises(FrameFormatError, match="0 tensors received"):
        StageComputation(last).forward(weights, weights, (), data, 0)
    with pytest.raises(FrameFormatError, match="received tensor 0"):
        StageComputation(last).forward(weights, weights, (torch.zeros(4, 31),), data, 0)


def test_a_scratch_copy_of_the_weights_is_used_where_given() -> None:
    case, package = captured("mlp")
    (stage,) = split_program(package.program, [])
    scratch = {n: t * 0 for n, t in package.weights.items()}
    loss = run_stages([stage], scratch, fields(case), 0)[0]
    assert torch.equal(loss, case.labels[0].square().mean())


def test_layer_costs_add_up() -> None:
    for name in CASES:
        _, package = captured(name)
        total = sum(t.nbytes for t in package.weights.values() if t.numel())
        shared = sum(t.nbytes for n, t in package.weights.items() if "mask" in n)
        held = sum(layer.param_bytes for layer in package.layers)
        assert total - shared <= held <= total + shared
        assert package.layers[-1].out_bytes == 0
        assert all(layer.flops > 0 and layer.out_bytes > 0 for layer in package.layers[:-1])
