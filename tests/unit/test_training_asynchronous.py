"""With τ > 0 a pipeline equals a slow reference, and trains as well as with τ = 0."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ravnest_p2p.core.types import OptimizerSpec
from ravnest_p2p.training import averaging
from tests.unit.training_models import Pipeline, classes, classifier, copies, cut, trainers_of

SPECS = {
    "sgd": OptimizerSpec("sgd", 0.2, clip_norm=0.4),
    "sgd momentum": OptimizerSpec("sgd", 0.1, momentum=0.9, weight_decay=1e-2, clip_norm=0.4),
    "adam": OptimizerSpec("adam", 1e-2, betas=(0.8, 0.95), weight_decay=1e-2),
    "adamw": OptimizerSpec("adamw", 1e-2, weight_decay=0.1, clip_norm=0.4),
    "lamb": OptimizerSpec("lamb", 1e-2, weight_decay=0.1, decay_vectors=False),
    "muon": OptimizerSpec("muon", 2e-2, momentum=0.9, weight_decay=0.1, adamw_lr=1e-2, clip_norm=0.4),
}

PIPELINES = {
    "P=2 m=2τ": ((3,), (1, 0), 2),
    "P=2 m=τ": ((3,), (2, 0), 2),
    "P=3 m=2τ": ((3, 6), (2, 1, 0), 4),
    "P=3 m=τ": ((3, 6), (2, 1, 0), 2),
    "P=3 m=τ, links": ((3, 6), (4, 2, 0), 4),
    "P=3 m<2τ": ((3, 6), (4, 2, 0), 5),
}


def newton_schulz(matrix: Tensor) -> Tensor:
    """As the method's author has it: five steps of the quintic in bfloat16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16()
    x = x.T if len(matrix) > len(matrix.T) else x
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        A = x @ x.T
        x = torch.addmm(x, torch.addmm(A, A, A, beta=b, alpha=c), x, beta=a)
    return (x.T if len(matrix) > len(matrix.T) else x).to(matrix.dtype)


class ReferenceStage:
    """One stage's weights by the definition: each version, and each ŵ, from all gradients by index."""

    def __init__(self, module: nn.Module, spec: OptimizerSpec, m: int, tau: int, stash: bool = False) -> None:
        self.module, self.spec, self.m, self.tau, self.stash = module, spec, m, tau, stash
        self.buffers = copies(dict(module.named_buffers()))
        self.w = copies(dict(module.named_parameters()))
        self.M = {n: torch.zeros_like(p) for n, p in self.w.items()}
        self.V = {n: torch.zeros_like(p) for n, p in self.w.items()}
        self.t = 0
        self.gradients: list[dict[str, Tensor]] = []
        self.early: dict[int, dict[str, Tensor]] = {}

    def weights(self, i: int) -> dict[str, Tensor]:
        u, k = divmod(i, self.m)
        return self.early[u] if u > 0 and k < self.tau else self.w

    def prepare(self) -> None:
        """Whatever the gradients so far make possible: ŵ after m − τ micro-batches, the step after m."""
        done = len(self.gradients)
        if done and done % self.m == 0 and done // self.m == self.t + 1:
            self.w, self.M, self.V = self.moved(self.clipped(self.total(self.t * self.m, done)))
            self.t += 1
        if self.tau and (done + self.tau) % self.m == 0 and (done + self.tau) // self.m == self.t + 1:
            n = self.m - self.tau
            ahead = self.moved(self.clipped(self.estimated(n, self.total(done - n, done))))[0]
            self.early[self.t + 1] = self.w if self.stash else ahead

    def total(self, lo: int, hi: int) -> dict[str, Tensor]:
        return {n: sum((g[n] for g in self.gradients[lo:hi]), torch.zeros_like(w)) for n, w in self.w.items()}

    def estimated(self, n: int, total: dict[str, Tensor]) -> dict[str, Tensor]:
        """G + (1 − n/m) × the mean gradient that the momentum remembers; G·m/n while it remembers none."""
        spec, missing, result = self.spec, 1 - n / self.m, {}
        for name, g in total.items():
            mu = spec.momentum if self.buffered(name) else spec.betas[0]
            if self.t == 0 or mu == 0:
                result[name] = g * self.m / n if n else g
                continue
            # M sums β's powers times (1−β), SGD's buffer without that factor.
            memory = self.M[name] * (1 - mu) if spec.name == "sgd" else self.M[name]
            mean = memory / (1 - mu**self.t)
            if spec.name in ("sgd", "adam"):
                mean = mean - spec.weight_decay * self.w[name]
            result[name] = g + missing * mean
        return result

    def buffered(self, name: str) -> bool:
        return self.spec.name == "sgd" or (self.spec.name == "muon" and self.w[name].ndim == 2)

    def clipped(self, g: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.spec.clip_norm is None:
            return g
        norm = math.sqrt(sum(float((x**2).sum()) for x in g.values()))
        return {n: x * min(1.0, self.spec.clip_norm / (norm + 1e-6)) for n, x in g.items()}

    def moved(self, g: dict[str, Tensor]):
        """One step by the textbook: new w, M, V."""
        spec, w, M, V = self.spec, {}, {}, {}
        for n, x in g.items():
            old = self.w[n]
            if spec.name in ("sgd", "adam"):
                x = x + spec.weight_decay * old
            if spec.name == "sgd":
                M[n], V[n] = spec.momentum * self.M[n] + x, self.V[n]
                w[n] = old - spec.lr * M[n]
                continue
            if self.buffered(n):
                M[n], V[n] = spec.momentum * self.M[n] + (1 - spec.momentum) * x, self.V[n]
                turned = newton_schulz((1 - spec.momentum) * x + spec.momentum * M[n])
                longer = max(1.0, old.shape[0] / old.shape[1]) ** 0.5
                w[n] = (1 - spec.lr * spec.weight_decay) * old - spec.lr * longer * turned
                continue
            b1, b2 = spec.betas
            M[n], V[n] = b1 * self.M[n] + (1 - b1) * x, b2 * self.V[n] + (1 - b2) * x**2
            m_hat, v_hat = M[n] / (1 - b1 ** (self.t + 1)), V[n] / (1 - b2 ** (self.t + 1))
            if spec.name == "lamb":
                r = m_hat / (v_hat.sqrt() + spec.eps)
                if old.ndim > 1:
                    r = r + spec.weight_decay * old
                    r = r * old.norm() / r.norm()
                w[n] = old - spec.lr * r
                continue
            rate = spec.adamw_lr if spec.name == "muon" else spec.lr
            decay = 1.0 if spec.name == "adam" else 1 - rate * spec.weight_decay
            w[n] = decay * old - rate * m_hat / (v_hat.sqrt() + spec.eps)
        return w, M, V


def reference(
    stages: list[nn.Sequential], spec: OptimizerSpec, batches, m: int, taus, stash: bool = False
) -> list[ReferenceStage]:
    """Train micro-batch by micro-batch through the whole model, each stage on the weights of its own rule."""
    parts = [ReferenceStage(module, spec, m, tau, stash) for module, tau in zip(stages, taus, strict=True)]
    for i, batch in enumerate(batches):
        for part in parts:
            part.prepare()
        used = [{n: w.clone().requires_grad_() for n, w in part.weights(i).items()} for part in parts]
        value = batch["x"]
        for part, weights in zip(parts, used, strict=True):
            value = functional_call(part.module, {**weights, **part.buffers}, (value,))
        (nn.functional.cross_entropy(value, batch["y"]) / m).backward()
        for part, weights in zip(parts, used, strict=True):
            part.gradients.append({n: w.grad for n, w in weights.items()})
    for part in parts:
        part.prepare()
    return parts


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "BatchNorm"])
@pytest.mark.parametrize("shape", PIPELINES)
@pytest.mark.parametrize("name", SPECS)
def test_equals_the_definition(name: str, shape: str, norm: bool) -> None:
    equals_the_definition(name, shape, norm, "speculative")


@pytest.mark.parametrize("shape", PIPELINES)
def test_stashing_runs_crossing_microbatches_on_the_weights_before_the_update(shape: str) -> None:
    equals_the_definition("adamw", shape, True, "stash")


def equals_the_definition(name: str, shape: str, norm: bool, correction: str) -> None:
    (bounds, taus, m), spec = PIPELINES[shape], SPECS[name]
    net = classifier(seed=3, dtype=torch.float64, norm=norm)
    batches = classes(8 * m, seed=4, dtype=torch.float64)
    stages = cut(net, bounds)
    trainers = trainers_of(stages, spec, m=m, staleness=taus, correction=correction)
    expected = reference(stages, spec, batches, m, taus, stash=correction == "stash")
    Pipeline(trainers, batches, taus, m).run()
    for trainer, part in zip(trainers, expected, strict=True):
        assert trainer.version == part.t == 8
        assert trainer.in_flight == 0
        for key, value in part.w.items():
            torch.testing.assert_close(trainer.params[key].detach(), value, rtol=1e-9, atol=1e-11, msg=key)
        for key, value in part.buffers.items():
            torch.testing.assert_close(trainer.buffers[key], value, rtol=1e-9, atol=1e-11, msg=key)


def test_the_result_does_not_depend_on_whose_turn_it_is() -> None:
    bounds, taus, m = PIPELINES["P=3 m=τ, links"]
    stages, batches = cut(classifier(seed=3), bounds), classes(8 * m, seed=4)
    results = []
    for seed in range(4):
        choose = random.Random(seed).randrange
        trainers = trainers_of(stages, SPECS["adamw"], m=m, staleness=taus)
        Pipeline(trainers, batches, taus, m, pick=choose).run()
        results.append([{**t.params, **t.buffers} for t in trainers])
    for other in results[1:]:
        for mine, theirs in zip(results[0], other, strict=True):
            assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_averaging_while_crossing_microbatches_are_in_flight() -> None:
    """The mean of one member is that member: averaging it after every step changes nothing."""
    bounds, taus, m = PIPELINES["P=3 m=2τ"]
    stages, batches = cut(classifier(seed=5), bounds), classes(6 * m, seed=6)
    untouched = trainers_of(stages, SPECS["adamw"], m=m, staleness=taus)
    Pipeline(untouched, batches, taus, m).run()
    averaged = trainers_of(stages, SPECS["adamw"], m=m, staleness=taus)
    crossing = []

    def average(s: int) -> None:
        params, buffers = averaged[s].params, averaged[s].buffers
        names = [*params, *buffers]
        averaging.scatter(averaging.gather(params, buffers, names), params, buffers, names)
        crossing.append(averaged[s].in_flight)

    Pipeline(averaged, batches, taus, m, after_step=average).run()
    assert max(crossing) > 0
    for one, other in zip(untouched, averaged, strict=True):
        for key, value in {**one.params, **one.buffers}.items():
            assert torch.equal(value, {**other.params, **other.buffers}[key]), key


def regression(updates: int, m: int) -> tuple[nn.Sequential, list[dict[str, Tensor]]]:
    torch.manual_seed(7)
    layers = [nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh()]
    net, teacher = (
        nn.Sequential(*layers, nn.Linear(16, 1)),
        nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 1)),
    )
    for weight in teacher.parameters():
        weight.requires_grad_(False).mul_(2.0)
    inputs = torch.randn(updates * m, 4, 8)
    return net, [{"x": x, "y": teacher(x)} for x in inputs]


@pytest.mark.parametrize(
    "spec",
    [
        OptimizerSpec("adamw", 1e-2, weight_decay=0.01),
        OptimizerSpec("sgd", 0.05, momentum=0.9),
        OptimizerSpec("muon", 0.02, momentum=0.95, adamw_lr=1e-2, betas=(0.9, 0.95)),
        OptimizerSpec("lamb", 1e-2, weight_decay=0.01, decay_vectors=False),
    ],
    ids=["adamw", "sgd momentum", "muon", "lamb"],
)
def test_trains_as_well_as_synchronously(spec: OptimizerSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    m, taus, updates = 6, (3, 2, 1, 0), 120
    net, batches = regression(updates, m)
    stages = cut(net, (2, 4, 6))

    def final_loss(staleness) -> float:
        trainers = trainers_of(stages, spec, m=m, staleness=staleness, loss=nn.functional.mse_loss)
        losses = Pipeline(trainers, batches, staleness, m).run().losses
        return sum(losses[-20 * m :]) / (20 * m)

    synchronous, speculative = final_loss((0, 0, 0, 0)), final_loss(taus)
    monkeypatch.setattr("ravnest_p2p.training.stage.early_step", lambda *_, **__: {})
    stale = final_loss(taus)
    assert speculative < 1.1 * synchronous
    assert abs(speculative - synchronous) < abs(stale - synchronous)
