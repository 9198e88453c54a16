"""Parts of a stage that run as machine code give what the loop gives, and the loop goes on without them.

That a real compiler's code does is shown behind the walls, in `test_sandbox_compiling`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from ravnest_p2p.model import Package, StageComputation, StageProgram, capture, ops, split_program
from ravnest_p2p.model import compiled as subject
from ravnest_p2p.model.compiled import Compiler, compile_stage, difference, fusable
from ravnest_p2p.model.footprint import StorageMeter
from ravnest_p2p.model.mixed import MixedComputation
from ravnest_p2p.model.node import Node, Ref
from tests.unit.model_zoo import make

WIDE = 1e-6
"""Gradients of regions that run without a compiler are the loop's, but for the order of sums."""


def packaged(name: str) -> tuple[Package, StageProgram, dict[str, Tensor]]:
    case = make(name)
    case.model.train()
    package = capture(case.model, case.inputs, loss=case.loss, example_labels=case.labels)
    data = {f"x{i}": t for i, t in enumerate(case.inputs)} | {f"y{i}": t for i, t in enumerate(case.labels)}
    return package, split_program(package.program, [])[0], data


def trained(
    computation: StageComputation, package: Package, data: dict[str, Tensor], steps: int = 2
) -> list[Tensor | None]:
    """Losses, gradients and buffers of some micro-batches."""
    stage = computation.stage
    params = {name: package.weights[name].clone().requires_grad_() for name in stage.params}
    buffers = {name: package.weights[name].clone() for name in stage.buffers}
    found: list[Tensor | None] = []
    for step in range(steps):
        (loss,) = computation.forward(params, buffers, (), data, step)
        found += [loss, *torch.autograd.grad(loss, list(params.values()), allow_unused=True)]
    return [*found, *buffers.values()]


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regions are formed, tried and run, but of the code that a compiler would make of them."""

    def same(loop: Callable[..., Sequence[Tensor]], given: Sequence[Tensor], gives: int) -> Any:
        return loop

    monkeypatch.setattr(subject, "_inductor", same)


def broken(loop: Callable[..., Sequence[Tensor]], given: Sequence[Tensor], gives: int) -> Any:
    raise OSError("no such compiler")


def wrong(loop: Callable[..., Sequence[Tensor]], given: Sequence[Tensor], gives: int) -> Any:
    return lambda *own: tuple(result * 1.01 for result in loop(*own))


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("kind", [StageComputation, MixedComputation])
@pytest.mark.parametrize("name", ["mlp", "cnn", "residual", "gpt", "gpt_manual", "gpt_tied"])
def test_a_stage_in_regions_is_the_stage(name: str, kind: type[StageComputation]) -> None:
    package, stage, data = packaged(name)
    whole, parts = kind(stage), kind(stage)
    regions = compile_stage(parts, compiler := Compiler(least_gain=0.0))
    assert difference(trained(parts, package, data), trained(whole, package, data)) < WIDE
    assert compiler.compiled == len(regions) > 0, compiler.why_not


@pytest.mark.parametrize(
    ("compiler", "make_code", "reason"),
    [
        (Compiler(), broken, "OSError: no such compiler"),
        (Compiler(least_gain=0.0), wrong, "results differ"),
        (Compiler(least_gain=1e9), None, "times as fast"),
        (Compiler(seconds=0.0), None, "no time is left"),
    ],
)
def test_the_loop_goes_on_where_compiling_fails(
    compiler: Compiler, make_code: Any, reason: str, uncompiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if make_code is not None:
        monkeypatch.setattr(subject, "_inductor", make_code)
    package, stage, data = packaged("gpt")
    parts = StageComputation(stage)
    regions = compile_stage(parts, compiler)
    found, expected = trained(parts, package, data), trained(StageComputation(stage), package, data)
    assert all(
        torch.equal(a, b) for a, b in zip(found, expected, strict=True) if a is not None and b is not None
    )
    assert compiler.compiled == 0
    assert len(compiler.why_not) == len(regions) > 0
    assert all(reason in said for said in compiler.why_not)


@pytest.mark.usefixtures("uncompiled")
def test_nothing_is_compiled_while_tensors_are_counted() -> None:
    package, stage, data = packaged("mlp")
    computation = StageComputation(stage)
    compile_stage(computation, compiler := Compiler(least_gain=0.0))
    with StorageMeter([]):
        trained(computation, package, data, 1)
    assert compiler.compiled == 0
    trained(computation, package, data, 1)
    assert compiler.compiled == 1


def test_a_stage_that_runs_twice_stays_as_it_is(uncompiled: None) -> None:
    _, stage, _ = packaged("mlp")
    assert compile_stage(StageComputation(stage, recompute=(2,))) == []


@pytest.mark.usefixtures("uncompiled")
def test_other_arguments_than_those_compiled_for_take_the_loop() -> None:
    package, stage, data = packaged("mlp")
    computation = StageComputation(stage)
    (region,) = compile_stage(computation, Compiler(least_gain=0.0))
    trained(computation, package, data, 1)
    calls: list[int] = []
    region._compiled = lambda *given: calls.append(1) or region._loop(*given)
    trained(computation, package, data, 1)
    params = {name: package.weights[name] for name in stage.params}
    with torch.no_grad():
        computation.forward(params, {}, (), data, 0)
    assert len(calls) == 1


def node(op: str, *args: Any, **kwargs: Any) -> Node:
    return Node(op, args, tuple(kwargs.items()), ())


@pytest.mark.parametrize(
    ("node", "inside"),
    [
        (node("aten.mul.Tensor", Ref(0), Ref(1)), True),
        (node("aten.dropout.default", Ref(0), 0.1, True), False),
        (node("aten.dropout.default", Ref(0), 0.0, True), True),
        (node("aten.scaled_dot_product_attention.default", Ref(0), Ref(1), Ref(2)), True),
        (node("aten.scaled_dot_product_attention.default", Ref(0), Ref(1), Ref(2), None, 0.1), False),
        (node("aten.scaled_dot_product_attention.default", Ref(0), Ref(1), Ref(2), dropout_p=0.1), False),
        (node("aten.rand.default", (2, 3)), False),
        (node("aten.bernoulli.p", Ref(0), 0.0), False),
        (node("aten.embedding.default", Ref(0), Ref(1)), False),
        (node("aten.cross_entropy_loss.default", Ref(0), Ref(1)), False),
        (node("ravnest.lstm_layer.default", Ref(0)), False),
    ],
)
def test_what_may_be_part_of_a_region(node: Node, inside: bool) -> None:
    assert fusable(node) is inside


def test_operations_that_are_kept_out_exist() -> None:
    assert {*subject.INDEXED_OPS, *subject.CHANCE_ARGUMENT} <= ops.ALLOWED_OPS


@pytest.mark.parametrize(
    ("found", "allowed"),
    [
        ([torch.tensor([3.0, 4.0])], True),
        ([torch.tensor([3.0, 4.0004])], True),
        ([torch.tensor([3.0, 4.004])], False),
        ([torch.tensor([3.0, math.nan])], False),
        ([torch.tensor([3.0])], False),
        ([torch.tensor([3.0, 4.0], dtype=torch.float64)], False),
        ([None], False),
    ],
)
def test_differences_are_seen(found: list[Tensor | None], allowed: bool) -> None:
    assert (difference(found, [torch.tensor([3.0, 4.0])]) <= 1.0) is allowed


def test_a_gradient_that_is_but_noise_is_held_against_the_largest() -> None:
    large = torch.full((4,), 100.0)
    assert difference([large, torch.tensor([1e-7])], [large, torch.tensor([-1e-7])]) <= 1.0
