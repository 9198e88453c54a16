"""Small models, and pipelines of stage trainers in one thread, for the tests of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ravnest_p2p.core.pipeline.notes import NO_NOTE, Note
from ravnest_p2p.core.pipeline.schedule import (
    Backward,
    Forward,
    Op,
    Speculate,
    StageSchedule,
    Step,
    closed_form,
)
from ravnest_p2p.core.types import OptimizerSpec
from ravnest_p2p.training import StageTrainer

torch.set_num_threads(1)

Loss = Callable[[Tensor, Tensor], Tensor]


class ModuleComputation:
    """A torch module as a stage; the first reads field "x", the last reads "y" and computes the loss."""

    def __init__(self, module: nn.Module, loss: Loss | None = None) -> None:
        self._module = module
        self._loss = loss

    def forward(
        self,
        params: Mapping[str, Tensor],
        buffers: dict[str, Tensor],
        received: Sequence[Tensor],
        data: Mapping[str, Tensor],
        seed: int,
    ) -> tuple[Tensor, ...]:
        value = received[0] if received else data["x"]
        output = functional_call(self._module, {**params, **buffers}, (value,))
        return (output if self._loss is None else self._loss(output, data["y"]),)


def classifier(seed: int, dtype: torch.dtype = torch.float32, norm: bool = True) -> nn.Sequential:
    """Three layers, which may be cut after children 3 and 6, for x (·, 6) and y (·,) below 4."""
    torch.manual_seed(seed)
    normalise = nn.BatchNorm1d if norm else nn.Identity
    # No bias under BatchNorm: its gradient is rounding noise, which Adam would blow up.
    first, second = nn.Linear(6, 10, bias=not norm), nn.Linear(10, 10, bias=not norm)
    layers = [first, normalise(10), nn.Tanh(), second, normalise(10), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(10, 4)).to(dtype)


def classes(count: int, seed: int, dtype: torch.dtype = torch.float32) -> list[dict[str, Tensor]]:
    """Micro-batches of 5 samples for `classifier`."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "x": torch.randn(5, 6, generator=generator, dtype=dtype),
            "y": torch.randint(4, (5,), generator=generator),
        }
        for _ in range(count)
    ]


def cut(net: nn.Sequential, bounds: Sequence[int]) -> list[nn.Sequential]:
    """The stages that `bounds` cut the model into; they share its parameters."""
    edges = [0, *bounds, len(net)]
    return [net[lo:hi] for lo, hi in pairwise(edges)]


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def matrices_of(module: nn.Module) -> set[str]:
    return {name for name, weight in module.named_parameters() if weight.ndim == 2}


def trainers_of(
    stages: Sequence[nn.Module],
    spec: OptimizerSpec,
    *,
    m: int,
    staleness: Sequence[int],
    loss: Loss = nn.functional.cross_entropy,
    **options: Any,
) -> list[StageTrainer]:
    """One trainer a stage, with copies of its parameters and buffers; Muon is given all matrices.

    Args:
        options: more arguments of `StageTrainer`.
    """
    last = len(stages) - 1
    return [
        StageTrainer(
            ModuleComputation(module, loss if s == last else None),
            copies(dict(module.named_parameters())),
            copies(dict(module.named_buffers())),
            optimizer=spec,
            microbatches_per_update=m,
            staleness=staleness[s],
            is_last=s == last,
            matrices=matrices_of(module),
            stage=s,
            **options,
        )
        for s, module in enumerate(stages)
    ]


@dataclass
class Pipeline:
    """Stage trainers that follow their schedules; `pick` says whose turn it is among those that can work.

    `losses` has each micro-batch's, in order.
    """

    trainers: Sequence[StageTrainer]
    batches: Sequence[Mapping[str, Tensor]]
    staleness: Sequence[int]
    m: int
    pick: Callable[[int], int] | None = None
    after_step: Callable[[int], None] | None = None

    def run(self) -> Pipeline:
        count = len(self.trainers)
        self.losses: list[float] = []
        self.schedules = [
            StageSchedule(s, count, self.staleness[s], self.m, len(self.batches)) for s in range(count)
        ]
        self._activations: list[dict[int, tuple[Any, Note]]] = [{} for _ in range(count)]
        self._gradients: list[dict[int, tuple[Any, Note]]] = [{} for _ in range(count)]
        given: list[Op | None] = [None] * count
        while not all(schedule.done for schedule in self.schedules):
            given = [op or schedule.next() for op, schedule in zip(given, self.schedules, strict=True)]
            ready = [s for s in range(count) if given[s] is not None]
            s = ready[self.pick(len(ready)) if self.pick else 0]
            self._perform(s, given[s])
            given[s] = None
        return self

    def _perform(self, s: int, op: Op | None) -> None:
        trainer, schedule = self.trainers[s], self.schedules[s]
        match op:
            case Forward(i, version, speculative):
                received, note = self._activations[s].pop(i, ((), NO_NOTE))
                result = trainer.forward(i, received, self.batches[i], i, speculative=speculative, note=note)
                assert result.version == version == closed_form(i, self.staleness[s], self.m).forward
                schedule.finished(op)
                if result.loss is None:
                    self._activations[s + 1][i] = result.outputs, result.note
                    self.schedules[s + 1].activation_arrived(i)
                else:
                    self.losses.append(result.loss)
            case Backward(i, version):
                assert trainer.version == version
                gradients = trainer.backward(i, *self._gradients[s].pop(i, ((), NO_NOTE)))
                schedule.finished(op)
                if s > 0:
                    self._gradients[s - 1][i] = gradients, trainer.gradient_note
                    self.schedules[s - 1].gradient_arrived(i)
            case Speculate():
                trainer.speculate()
                schedule.finished(op)
            case Step():
                trainer.step()
                schedule.finished(op)
                if self.after_step is not None:
                    self.after_step(s)
            case _:
                raise AssertionError(f"unexpected {op}")
