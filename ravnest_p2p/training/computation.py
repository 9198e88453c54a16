"""What a stage's trainer computes with, and what it keeps of a micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ravnest_p2p.core.pipeline.notes import NO_NOTE, LeftOut, Note


class Computation(Protocol):
    """What one stage computes: differentiable, and a function of its arguments alone."""

    def forward(
        self,
        params: Mapping[str, Tensor],
        buffers: dict[str, Tensor],
        received: Sequence[Tensor],
        data: Mapping[str, Tensor],
        seed: int,
    ) -> tuple[Tensor, ...]:
        """Outputs for the next stage, or (loss,) with a scalar loss on the last.

        Args:
            buffers: BatchNorm statistics and the like; updated here, once a call, in place or by new entries.
            received: outputs of the stage before; empty on the first.
            data: this stage's fields for the micro-batch, by graph input name.
            seed: of every random node.
        """
        ...


Locate = Callable[[Mapping[str, Tensor], dict[str, Tensor], Sequence[Tensor], Mapping[str, Tensor], int], str]
"""Names what made a forward's results not finite; takes what `Computation.forward` takes."""


@dataclass(frozen=True, slots=True)
class Forwarded:
    """What a forward leaves.

    Attributes:
        outputs: for the next stage: detached, contiguous, on the CPU, never written to again; empty on the
            last stage, and where the micro-batch is left out. A parameter that did not change since the
            forward before is the same memory.
        loss: on the last stage; NaN where the micro-batch is left out.
        version: of the weights that the forward used; for ŵ that of the weights it was stepped from.
        note: goes along with the outputs.
    """

    outputs: tuple[Tensor, ...]
    loss: float | None
    version: int
    note: Note = NO_NOTE


@dataclass(slots=True)
class Flight:
    """A micro-batch between its forward and its backward; one that is left out has no graph."""

    leaves: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    weights: Mapping[str, Tensor]
    speculative: bool
    left_out: LeftOut | None
