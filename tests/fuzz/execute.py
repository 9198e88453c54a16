"""Run an accepted program for real, backward included, on values from normal to extreme."""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor

from ravnest_p2p.model import Leaf, Program, StageComputation, stage_program
from tests.fuzz.fenced import Fence


def values_of(leaf: Leaf, random: Random) -> Tensor:
    """A tensor for a leaf: small numbers, or the extremes of its dtype."""
    dtype = leaf.spec.torch_dtype
    generator = torch.Generator().manual_seed(random.getrandbits(32))
    extreme = random.random() < 0.3
    if dtype is torch.bool:
        return torch.randint(2, leaf.shape, generator=generator).bool()
    if dtype.is_floating_point:
        values = torch.randn(leaf.shape, generator=generator).to(dtype)
        edges = [
            float("inf"),
            float("-inf"),
            float("nan"),
            0.0,
            torch.finfo(dtype).max,
            torch.finfo(dtype).tiny,
        ]
        return _mixed(values, edges, generator) if extreme else values
    values = torch.randint(random.choice((1, 2, 3, 5)), leaf.shape, generator=generator).to(dtype)
    limits = torch.iinfo(dtype)
    edges = [limits.min, limits.max, limits.min, -1 if limits.min else 255, 0, 100]
    return _mixed(values, edges, generator) if extreme else values


def _mixed(values: Tensor, edges: list[float] | list[int], generator: torch.Generator) -> Tensor:
    choice = torch.randint(len(edges), values.shape, generator=generator)
    return torch.tensor(edges, dtype=values.dtype)[choice]


def execute(program: Program, random: Random) -> None:
    """Forward and backward of the whole program as one stage.

    Raises:
        Exception: whatever the operations say; a worker reports it and goes on.
    """
    fence = Fence()
    try:
        _step(program, random, fence)
    finally:
        fence.close()


def _step(program: Program, random: Random, fence: Fence) -> None:
    stage = stage_program(program, 0, len(program.layer_bounds))
    at_end = random.random() < 0.8
    held = {leaf.name: fence.enclose(values_of(leaf, random), at_end) for leaf in program.leaves}
    params = {name: held[name].requires_grad_() for name in stage.params}
    buffers = {name: held[name] for name in stage.buffers}
    data = {name: held[name] for name in stage.data_inputs}
    (loss,) = StageComputation(stage).forward(params, buffers, (), data, random.getrandbits(60))
    if params and loss.requires_grad:
        torch.autograd.grad(loss, list(params.values()), allow_unused=True)
