"""The mean gradients that optimizers remember, averaged beside the parameters.

Problem: after a round all clusters have the same weights, but each goes on in the direction in which its own
samples took it before, by its optimizer's first moment. Solution: where a job wants it, the moment of a
parameter is one more tensor that clusters average. Second moments differ little between clusters, and their
mean hardly gains (docs/averaging.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ravnest_p2p.training.snapshot import slot_key
from ravnest_p2p.training.stage import StageTrainer

_MARK = "/"
"""No parameter's name begins so (`model.parse`)."""


class WithMomenta(Mapping[str, Tensor]):
    """A stage's parameters by name, and with them first moments, as they are now.

    A parameter that was never stepped has none: it counts as zeros, and what is written to these is lost.
    """

    def __init__(self, trainer: StageTrainer) -> None:
        self._trainer = trainer
        self._slots = {
            _MARK + slot_key(name, slot): (name, slot)
            for name, slot in trainer.optimizer.momentum_slots.items()
        }

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._slots:
            return self._trainer.params[name]
        param, slot = self._slots[name]
        found = self._trainer.optimizer.slot(param, slot)
        return torch.zeros_like(self._trainer.params[param].detach()) if found is None else found

    def __iter__(self) -> Iterator[str]:
        yield from self._trainer.params
        yield from self._slots

    def __len__(self) -> int:
        return len(self._trainer.params) + len(self._slots)

    def names_of(self, params: set[str]) -> list[str]:
        """Names of these parameters' moments, in an order that all peers share."""
        return sorted(name for name, (param, _) in self._slots.items() if param in params)


def is_momentum(name: str) -> bool:
    """Whether a name among what is averaged is that of a moment."""
    return name.startswith(_MARK)


def momentum_key(name: str) -> str:
    """Of a moment, by its name, in a piece."""
    return name.removeprefix(_MARK)
