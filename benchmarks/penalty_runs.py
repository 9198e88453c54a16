"""One training run of `benchmarks.async_penalty`, kept in a file so that a later call can go on from it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import penalty_setting as setting
from benchmarks.kept import kept
from ravnest_p2p.core.pipeline.correction import CORRECTIONS, SPECULATIVE
from ravnest_p2p.core.pipeline.schedule import staleness_for
from ravnest_p2p.model import Package, StageComputation, StageProgram, capture, split_program
from ravnest_p2p.model.matrices import hidden_matrices
from ravnest_p2p.testing.training_sim import train
from ravnest_p2p.training.optimizer import StageOptimizer
from ravnest_p2p.training.stage import StageTrainer

SYNCHRONOUS, FULL, AT_ONCE = "synchronous", "speculative, float32", "at once"
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Run:
    """What is trained how.

    Attributes:
        way: "synchronous" (τ = 0), a correction, "speculative, float32" (ŵ in full), or "at once".
        latency: ℓ of the links, in micro-batches' forward times.
    """

    way: str
    stages: int
    m: int
    updates: int
    seed: int
    optimizer: str = "adamw"
    latency: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """Losses, nats a letter: of the finished weights on held-out text, and of the last tenth of training."""

    held_out: float
    training: float
    seconds: float


def outcome(run: Run, keep: Path | None) -> Outcome:
    """Train, or read from `keep` what the same run gave with the same code."""
    return kept(run, keep, _sources(), Outcome, lambda: _train(run))


def _train(run: Run) -> Outcome:
    began = time.monotonic()
    losses, weights = _at_once(run) if run.way == AT_ONCE else _pipelined(run)
    last = losses[-max(1, len(losses) // 10) :]
    return Outcome(setting.held_out_loss(weights), sum(last) / len(last), time.monotonic() - began)


def _sources() -> list[Path]:
    """Of all code that decides what a run gives."""
    parts = [ROOT / "benchmarks" / "penalty_setting.py", ROOT / "benchmarks" / "penalty_runs.py"]
    product = ROOT / "ravnest_p2p"
    parts += [product / "core" / "optimizers.py", product / "model" / "compute.py"]
    for folder in ("core/pipeline", "training"):
        parts += sorted((product / folder).glob("*.py"))
    return parts


def package_of(seed: int, rows: int) -> Package:
    """The network with that seed's first weights, captured with micro-batches of so many rows."""
    letters = torch.zeros(rows, setting.CONTEXT, dtype=torch.int64)
    model = setting.model_of(seed)
    return capture(model, (letters,), loss=setting.cross_entropy, example_labels=(letters,))


def _microbatches(run: Run, rows: int, count: int) -> list[Mapping[str, Tensor]]:
    x, y = setting.windows(setting.text(False), rows * count, run.seed + 1)
    return [{"x0": a, "y0": b} for a, b in zip(x.split(rows), y.split(rows), strict=True)]


def _staleness(run: Run) -> list[int]:
    """τ of each stage; of a run "at once" the gradient's delay in updates, which m does not bound."""
    limit = None if run.way == AT_ONCE else run.m
    return [staleness_for(s, run.stages, run.latency, limit) for s in range(run.stages)]


def _pipelined(run: Run) -> tuple[list[float], dict[str, Tensor]]:
    package = package_of(run.seed, setting.MICROBATCH)
    spec = setting.optimizer_of(run.optimizer, run.updates)
    matrices = hidden_matrices(package.program) if spec.name == "muon" else ()
    staleness = [0] * run.stages if run.way == SYNCHRONOUS else _staleness(run)
    trainers = [
        StageTrainer(
            StageComputation(stage),
            weights_of(package, stage),
            {name: package.weights[name] for name in stage.buffers},
            optimizer=spec,
            microbatches_per_update=run.m,
            staleness=tau,
            is_last=stage.is_last,
            matrices=matrices,
            correction=run.way if run.way in CORRECTIONS else SPECULATIVE,
            halve=run.way != FULL,
        )
        for stage, tau in zip(split_program(package.program, stages=run.stages), staleness, strict=True)
    ]
    microbatches = _microbatches(run, setting.MICROBATCH, run.m * run.updates)
    result = train(
        trainers,
        microbatches.__getitem__,
        staleness=staleness,
        microbatches_per_update=run.m,
        updates=run.updates,
        latency_s=run.latency,
    )
    return result.losses, {n: p.detach() for trainer in trainers for n, p in trainer.params.items()}


def _at_once(run: Run) -> tuple[list[float], dict[str, Tensor]]:
    """Every micro-batch is an update: of the whole batch's samples, so that only the staleness differs.

    Stage s runs update u's samples forward and backward on the weights of update u − τ_s, which it has kept.
    """
    rows = setting.MICROBATCH * run.m
    package, spec = package_of(run.seed, rows), setting.optimizer_of(run.optimizer, run.updates)
    stages, staleness = split_program(package.program, stages=run.stages), _staleness(run)
    live = [{n: p.requires_grad_() for n, p in weights_of(package, stage).items()} for stage in stages]
    optimizers = [StageOptimizer(spec, params) for params in live]
    computations = [StageComputation(stage) for stage in stages]
    buffers = [{name: package.weights[name] for name in stage.buffers} for stage in stages]
    history: list[list[dict[str, Tensor]]] = [[] for _ in stages]
    losses = []
    for u, data in enumerate(_microbatches(run, rows, run.updates)):
        value: tuple[Tensor, ...] = ()
        used = []
        for s, params in enumerate(live):
            history[s].append({n: p.detach().clone().requires_grad_() for n, p in params.items()})
            history[s] = history[s][-(staleness[s] + 1) :]
            used.append(history[s][0])
            value = computations[s].forward(used[s], buffers[s], value, data, u)
        losses.append(float(value[0].detach()))
        names = [(s, n) for s, params in enumerate(live) for n in params]
        gradients = torch.autograd.grad(value[0], [used[s][n] for s, n in names])
        for (s, n), gradient in zip(names, gradients, strict=True):
            live[s][n].grad = gradient
        for params, optimizer in zip(live, optimizers, strict=True):
            if spec.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(params.values(), spec.clip_norm)
            optimizer.step(u)
    return losses, {n: p.detach() for params in live for n, p in params.items()}


def weights_of(package: Package, stage: StageProgram) -> dict[str, Tensor]:
    """Copies of the stage's first weights."""
    return {name: package.weights[name].detach().clone() for name in stage.params}
