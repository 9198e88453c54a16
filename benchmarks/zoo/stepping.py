"""Train a few steps eagerly, as one captured stage, and as several, and say where they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.zoo.case import Case
from ravnest_p2p.model import Package, Stage, StageComputation, split_program

RATE = 0.01


@dataclass(frozen=True)
class Trace:
    """What one step left behind: its loss, all gradients, and all buffers after it."""

    loss: Tensor
    grads: dict[str, Tensor]
    buffers: dict[str, Tensor]


def train_eager(case: Case, steps: int) -> list[Trace]:
    """Plain SGD on the model itself, not a copy, torch's generator seeded by the step."""
    trained = {name: p for name, p in case.named("parameters").items() if p.requires_grad}
    traces = []
    for step in range(steps):
        torch.manual_seed(step)
        loss = case.at(step).run()
        found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        grads = {n: g for n, g in zip(trained, found, strict=True) if g is not None}
        with torch.no_grad():
            for name, gradient in grads.items():
                trained[name] -= RATE * gradient
        buffers = {n: b.clone() for n, b in case.named("buffers").items()}
        traces.append(Trace(loss.detach(), grads, buffers))
    return traces


def train_stages(
    case: Case, package: Package, cuts: Sequence[int], steps: int, reseed: bool = True
) -> list[Trace]:
    """The same on stages, one after another; each holds copies of its own weights.

    Args:
        reseed: whether random nodes are seeded by index, or torch's generator by the step, as in eager mode.
    """
    programs = split_program(package.program, cuts)
    stages = [Stage(StageComputation(program, reseed=reseed), package.weights) for program in programs]
    trained = [tensor for stage in stages for tensor in stage.parameters()]
    traces = []
    for step in range(steps):
        data = case.at(step).fields()
        torch.manual_seed(step)
        carried: tuple[Tensor, ...] = ()
        for stage in stages:
            carried = stage.forward(carried, data, step)
        backward: list[Tensor | None] | None = None
        for stage in reversed(stages):
            backward = stage.backward(backward)
        grads = {n: g.clone() for stage in stages for n, g in stage.gradients.items()}
        with torch.no_grad():
            for tensor in trained:
                if tensor.grad is not None:
                    tensor -= RATE * tensor.grad
                tensor.grad = None
        buffers = {n: b.clone() for stage in stages for n, b in stage.buffers.items()}
        traces.append(Trace(carried[0], grads, buffers))
    return traces


def difference(found: Sequence[Trace], expected: Sequence[Trace]) -> str:
    """The first thing that is not bit-identical, or "" where everything is."""
    for step, (a, b) in enumerate(zip(found, expected, strict=True), 1):
        if not same(a.loss, b.loss):
            return f"loss of step {step}: {a.loss.item():g} for {b.loss.item():g}"
        if a.grads.keys() != b.grads.keys():
            return f"step {step}: only one has a gradient of {sorted(a.grads.keys() ^ b.grads.keys())[0]}"
        for what, left, right in (("gradient", a.grads, b.grads), ("buffer", a.buffers, b.buffers)):
            for name in left.keys() & right.keys():
                if not same(left[name], right[name]):
                    return f"{what} of {name} in step {step}"
    return ""


def same(a: Tensor, b: Tensor) -> bool:
    """Equal shape, dtype and bits; NaN equals NaN."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(7e6), b.nan_to_num(7e6))
