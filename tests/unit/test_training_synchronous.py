"""With τ = 0 a stage, and a pipeline of stages, is plain PyTorch bit for bit."""

from __future__ import annotations

from fnmatch import fnmatch

import pytest
import torch
from torch import nn

from ravnest_p2p.core.errors import ConfigError
from ravnest_p2p.core.optimizers import scheduled
from ravnest_p2p.core.types import OptimizerSpec
from ravnest_p2p.training import learning_rate
from ravnest_p2p.training.lamb import Lamb
from tests.unit.training_models import Pipeline, classes, classifier, cut, trainers_of

SPECS = {
    "sgd": OptimizerSpec("sgd", 0.1),
    "sgd momentum": OptimizerSpec("sgd", 0.1, momentum=0.9, weight_decay=1e-3, clip_norm=0.3),
    "adam": OptimizerSpec("adam", 1e-2, betas=(0.8, 0.95), weight_decay=1e-2, clip_norm=0.3),
    "adamw": OptimizerSpec("adamw", 1e-2, weight_decay=0.1, eps=1e-6, clip_norm=0.3),
    "adamw cosine": OptimizerSpec(
        "adamw",
        1e-2,
        weight_decay=0.1,
        clip_norm=0.3,
        warmup_updates=5,
        schedule="cosine",
        schedule_updates=40,
    ),
    "adam linear": OptimizerSpec("adam", 1e-2, warmup_updates=3, schedule="linear", schedule_updates=60),
    "adamw groups": OptimizerSpec("adamw", 1e-2, weight_decay=0.3, decay_vectors=False, no_decay=("0.w*",)),
    "sgd step": OptimizerSpec("sgd", 0.1, warmup_updates=4, schedule="step", schedule_updates=15),
    "muon": OptimizerSpec("muon", 2e-2, momentum=0.95, betas=(0.9, 0.95), weight_decay=0.1, clip_norm=0.3),
    "muon cosine": OptimizerSpec(
        "muon", 2e-2, momentum=0.9, adamw_lr=1e-3, warmup_updates=5, schedule="cosine", schedule_updates=40
    ),
    "lamb": OptimizerSpec("lamb", 1e-2, weight_decay=0.1, decay_vectors=False, clip_norm=0.3),
}


def plain_optimizers(spec: OptimizerSpec, module: nn.Module) -> list[torch.optim.Optimizer]:
    """What somebody who cares for speed would write for one stage alone, each with its rate in `defaults`."""
    named = list(module.named_parameters())
    moments = {"betas": spec.betas, "eps": spec.eps}
    if spec.name == "sgd":
        params = [p for _, p in named]
        momentum, decay = spec.momentum, spec.weight_decay
        return [torch.optim.SGD(params, spec.lr, momentum=momentum, weight_decay=decay, fused=True)]
    if spec.name == "muon":
        matrices, rest = [p for _, p in named if p.ndim == 2], [p for _, p in named if p.ndim != 2]
        return [
            torch.optim.Muon(matrices, spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay),
            torch.optim.AdamW(rest, spec.adamw_lr, weight_decay=spec.weight_decay, **moments, fused=True),
        ]
    exempt = {n for n, _ in named for pattern in spec.no_decay if fnmatch(n, pattern)}
    exempt |= {n for n, p in named if p.ndim < 2 and not spec.decay_vectors}
    free = [p for n, p in named if n in exempt]
    bound = [p for n, p in named if n not in exempt]
    groups = [{"params": bound}, {"params": free, "weight_decay": 0.0}]
    if spec.name == "lamb":
        groups[1]["adapt"] = False
        return [Lamb(groups, spec.lr, weight_decay=spec.weight_decay, **moments)]
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[spec.name]
    return [kind(groups, spec.lr, weight_decay=spec.weight_decay, **moments, fused=True)]


@pytest.mark.parametrize("bounds", [(), (3,), (3, 6)], ids=["one stage", "two stages", "three stages"])
@pytest.mark.parametrize("name", SPECS)
def test_equals_plain_pytorch_bit_for_bit(name: str, bounds: tuple[int, ...]) -> None:
    spec, m, updates = SPECS[name], 3, 50
    net, batches = classifier(seed=1), classes(updates * m, seed=2)
    stages = cut(net, bounds)
    trainers = trainers_of(stages, spec, m=m, staleness=[0] * len(stages))
    losses = Pipeline(trainers, batches, [0] * len(stages), m).run().losses

    optimizers = [optimizer for stage in stages for optimizer in plain_optimizers(spec, stage)]
    for u in range(updates):
        for k in range(m):
            batch = batches[u * m + k]
            loss = nn.functional.cross_entropy(net(batch["x"]), batch["y"])
            assert loss.item() == losses[u * m + k]
            (loss / m).backward()
        if spec.clip_norm is not None:
            for stage in stages:
                nn.utils.clip_grad_norm_(stage.parameters(), spec.clip_norm)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = scheduled(spec, optimizer.defaults["lr"], u)
            optimizer.step()
            optimizer.zero_grad()

    for stage, trainer in zip(stages, trainers, strict=True):
        assert trainer.version == updates
        for key, value in stage.named_parameters():
            assert torch.equal(trainer.params[key], value), key
        for key, value in stage.named_buffers():
            assert torch.equal(trainer.buffers[key], value), key


def test_schedules_warm_up_and_fall_to_zero() -> None:
    linear = OptimizerSpec("sgd", 2.0, warmup_updates=4, schedule="linear", schedule_updates=8)
    assert [learning_rate(linear, v) for v in range(10)] == [0.5, 1.0, 1.5, 2.0, 2.0, 1.5, 1.0, 0.5, 0.0, 0.0]
    cosine = OptimizerSpec("sgd", 2.0, schedule="cosine", schedule_updates=4)
    rates = [learning_rate(cosine, v) for v in range(5)]
    assert rates == pytest.approx([2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5, 0.0], abs=1e-12)
    assert learning_rate(OptimizerSpec("sgd", 2.0), 10**6) == 2.0
    step = OptimizerSpec(
        "sgd", 2.0, warmup_updates=2, schedule="step", schedule_updates=3, schedule_factor=0.5
    )
    assert [learning_rate(step, v) for v in range(9)] == [1.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 0.5]
    assert learning_rate(step, 2**53) == 0.0


@pytest.mark.parametrize(
    "spec",
    [
        OptimizerSpec("sgd", 0.1, schedule="square"),
        OptimizerSpec("sgd", 0.1, schedule="linear", warmup_updates=5, schedule_updates=5),
        OptimizerSpec("lion", 0.1),
        OptimizerSpec("adam", -1.0),
        OptimizerSpec("adam", float("nan")),
        OptimizerSpec("adam", float("inf")),
        OptimizerSpec("sgd", 0.1, momentum=1.0),
        OptimizerSpec("lamb", 0.1, betas=(0.9, 1.0)),
        OptimizerSpec("lamb", 0.1, betas=(-0.1, 0.9)),
        OptimizerSpec("adam", 0.1, eps=-1.0),
        OptimizerSpec("adam", 0.1, weight_decay=-1.0),
        OptimizerSpec("muon", 0.1, adamw_lr=-1.0),
        OptimizerSpec("sgd", 0.1, clip_norm=0.0),
        OptimizerSpec("sgd", 0.1, warmup_updates=-1),
        OptimizerSpec("sgd", 0.1, schedule="step"),
        OptimizerSpec("sgd", 0.1, schedule="step", schedule_updates=2, schedule_factor=1.5),
        OptimizerSpec("sgd", 0.1, no_decay=("",)),
        OptimizerSpec("sgd", 0.1, no_decay=("x" * 129,)),
        OptimizerSpec("sgd", 0.1, no_decay=("x",) * 33),
    ],
)
def test_impossible_optimizers_are_the_users_to_mend(spec: OptimizerSpec) -> None:
    with pytest.raises(ConfigError):
        trainers_of([classifier(0)], spec, m=1, staleness=[0])
