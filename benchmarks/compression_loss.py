"""What `benchmarks.compression` trains: the GPT of examples/gpt in stages, with codecs between them.

The stages, their training and what packs their tensors are the product's own; only the links are left out. A
stage takes one micro-batch after another without staleness, so that the codec is the only difference.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from ravnest_p2p.core import compression
from ravnest_p2p.core.types import OptimizerSpec
from ravnest_p2p.daemon.worker.crossing import Crossing
from ravnest_p2p.model import Package, StageComputation, StageProgram, TensorSpec, capture, split_program
from ravnest_p2p.training import StageTrainer

HELD_OUT = 512
MICROBATCH = 8
MICROBATCHES = 4
WARMUP = 20
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        codec: of every cut, in both directions.
        seed: of the first weights and the order of the samples.
    """

    codec: str
    stages: int
    updates: int
    seed: int


class Cut:
    """One cut between two stages: what is sent comes out at the other side as it would at a peer."""

    def __init__(self, stage: StageProgram, codec: str, seed: int) -> None:
        back = [spec for spec in stage.sends if spec.differentiable]
        self._specs = stage.sends
        self._codec = codec
        self._ahead = self._ends(stage.sends, predicted=True, seed=seed)
        self._back = self._ends(back, predicted=False, seed=seed)

    def forward(self, tensors: tuple[Tensor, ...]) -> list[Tensor]:
        return self._cross(self._ahead, list(tensors))

    def backward(self, gradients: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        came = iter(self._cross(self._back, [gradient for gradient in gradients if gradient is not None]))
        return [next(came) if spec.differentiable else None for spec in self._specs]

    def _ends(
        self, specs: list[TensorSpec] | tuple[TensorSpec, ...], **settings: bool | int
    ) -> list[Crossing]:
        return [Crossing(specs, compression.allowed(self._codec), **settings) for _ in range(2)]  # type: ignore[arg-type]

    def _cross(self, ends: list[Crossing], tensors: list[Tensor]) -> list[Tensor]:
        sender, receiver = ends
        name, buffers = sender.pack(self._codec, tensors)
        return receiver.unpack(name, bytearray(b"".join(buffers)), what="a tensor")


def train(run: Run) -> float:
    """Nats a letter on text that was not trained on, of the finished weights."""
    gpt, package = _example(), _package(run.seed)
    stages = split_program(package.program, stages=run.stages)
    optimizer = OptimizerSpec(
        "adamw",
        3e-3,
        betas=(0.9, 0.98),
        weight_decay=1e-2,
        clip_norm=1.0,
        warmup_updates=WARMUP,
        schedule="cosine",
        schedule_updates=run.updates,
    )
    trainers = [_trainer(stage, package, optimizer) for stage in stages]
    cuts = [Cut(stage, run.codec, seed=run.seed + k) for k, stage in enumerate(stages[:-1])]
    x, y = _data()
    rows = torch.randperm(len(x) - HELD_OUT, generator=torch.Generator().manual_seed(run.seed))
    names = [leaf.name for leaf in package.program.inputs]
    for i in range(run.updates * MICROBATCHES):
        taken = rows[torch.arange(i * MICROBATCH, (i + 1) * MICROBATCH) % len(rows)]
        _microbatch(i, trainers, cuts, dict(zip(names, (x[taken], y[taken]), strict=True)))
        if (i + 1) % MICROBATCHES == 0:
            for trainer in trainers:
                trainer.step()
    model = gpt.build_model()
    held = {name: value for trainer in trainers for name, value in (trainer.params | trainer.buffers).items()}
    model.load_state_dict(package.state_dict(held))
    with torch.no_grad():
        parts = zip(x[-HELD_OUT:].split(64), y[-HELD_OUT:].split(64), strict=True)
        losses = [float(gpt.loss(model(letters), following)) for letters, following in parts]
    return sum(losses) / len(losses)


def _microbatch(i: int, trainers: list[StageTrainer], cuts: list[Cut], data: dict[str, Tensor]) -> None:
    received: list[Tensor] = []
    for number, trainer in enumerate(trainers):
        outputs = trainer.forward(i, received, data, 0, speculative=False).outputs
        if number < len(cuts):
            received = cuts[number].forward(outputs)
    gradients: list[Tensor | None] = []
    for number in reversed(range(len(trainers))):
        back = trainers[number].backward(i, gradients)
        if number:
            gradients = cuts[number - 1].backward(back)


def _trainer(stage: StageProgram, package: Package, optimizer: OptimizerSpec) -> StageTrainer:
    return StageTrainer(
        StageComputation(stage),
        {name: package.weights[name].clone() for name in stage.params},
        {name: package.weights[name].clone() for name in stage.buffers},
        optimizer=optimizer,
        microbatches_per_update=MICROBATCHES,
        staleness=0,
        is_last=stage.is_last,
    )


@cache
def _example() -> ModuleType:
    sys.path.insert(0, str(EXAMPLES / "gpt"))
    try:
        return importlib.import_module("train")
    finally:
        sys.path.remove(str(EXAMPLES / "gpt"))


@cache
def _data() -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = _example().data()
    return found


def _package(seed: int) -> Package:
    gpt, (x, y) = _example(), _data()
    return capture(gpt.build_model(seed), (x[:MICROBATCH],), loss=gpt.loss, example_labels=(y[:MICROBATCH],))
