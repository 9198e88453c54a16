"""Any numbers that pass the check train; any early step of a complete batch is the real one."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ravnest_p2p.core.errors import ConfigError
from ravnest_p2p.core.optimizers import OPTIMIZERS, SCHEDULES, check_optimizer, learning_rate
from ravnest_p2p.core.types import OptimizerSpec
from ravnest_p2p.training.optimizer import StageOptimizer, early_step

torch.set_num_threads(1)

SHAPES = {"a.weight": (3, 4), "b.weight": (5, 2), "b.bias": (5,), "c.embed": (4, 4), "d.scale": ()}
MATRICES = {"a.weight", "b.weight"}

unit = st.one_of(st.floats(0, 1, exclude_max=True), st.just(0.0), st.just(math.nextafter(1.0, 0.0)))
sane = st.builds(
    OptimizerSpec,
    name=st.sampled_from(OPTIMIZERS),
    lr=st.floats(0, 1),
    momentum=unit,
    betas=st.tuples(unit, unit),
    eps=st.floats(1e-12, 1),
    weight_decay=st.floats(0, 1),
    clip_norm=st.none() | st.floats(1e-3, 10),
    warmup_updates=st.integers(0, 3),
    schedule=st.sampled_from(SCHEDULES),
    schedule_updates=st.integers(4, 9),
    schedule_factor=st.floats(0, 1),
    decay_vectors=st.booleans(),
    no_decay=st.sampled_from([(), ("*.embed",), ("a.*", "d*")]),
)
anything = st.one_of(
    st.floats(0, 2), st.sampled_from([0.0, 5e-324, 1e-30, 1e6]), st.floats(), st.integers(-1, 3).map(float)
)
wild = st.builds(
    OptimizerSpec,
    name=st.sampled_from(OPTIMIZERS),
    lr=anything,
    momentum=unit | unit | anything,
    betas=st.tuples(unit, unit) | st.tuples(anything, anything),
    eps=anything,
    weight_decay=anything,
    clip_norm=st.none() | anything,
    warmup_updates=st.integers(0, 2**63 - 1) | st.integers(-1, 4),
    schedule=st.sampled_from([*SCHEDULES, "saw"]),
    schedule_updates=st.integers(-1, 2**63 - 1),
    schedule_factor=unit | anything,
    adamw_lr=anything,
    decay_vectors=st.booleans(),
    no_decay=st.lists(st.text("ab*?[]!-.\\", min_size=1, max_size=9), max_size=4).map(tuple),
)


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def stepped(
    spec: OptimizerSpec, params: dict[str, torch.Tensor], optimizer: StageOptimizer, version: int
) -> None:
    for name, gradient in tensors(version + 1).items():
        params[name].grad = gradient
    if spec.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(params.values(), spec.clip_norm)
    optimizer.step(version)


@settings(max_examples=100, deadline=None)
@given(sane, st.integers(0, 3))
def test_the_early_step_of_a_complete_batch_is_the_step(spec: OptimizerSpec, before: int) -> None:
    params = {name: weight.requires_grad_() for name, weight in tensors(0).items()}
    optimizer = StageOptimizer(spec, params, MATRICES)
    for version in range(before):
        stepped(spec, params, optimizer, version)
    sums, state = tensors(before + 1), optimizer.state()
    kept = {name: {slot: t.clone() for slot, t in slots.items()} for name, slots in state.items()}
    early = early_step(spec, params, sums, state, version=before, done=4, of=4, matrices=MATRICES)
    assert all(torch.equal(state[n][s], tensor) for n, slots in kept.items() for s, tensor in slots.items())
    stepped(spec, params, optimizer, before)
    assert early.keys() == params.keys()
    for name, weight in params.items():
        assert torch.equal(early[name].nan_to_num(), weight.nan_to_num()), name


@settings(max_examples=400, deadline=None)
@given(wild, st.integers(0, 2**53))
def test_numbers_that_pass_the_check_make_no_trouble(spec: OptimizerSpec, version: int) -> None:
    try:
        check_optimizer(spec)
    except ConfigError:
        return
    assert 0.0 <= learning_rate(spec, version) <= spec.lr * (1 + 1e-15)
    params = {name: weight.requires_grad_() for name, weight in tensors(0).items()}
    optimizer = StageOptimizer(spec, params, MATRICES)
    stepped(spec, params, optimizer, version)
    early_step(
        spec, params, tensors(1), optimizer.state(), version=version + 1, done=1, of=3, matrices=MATRICES
    )
