"""Run a stage in stretches that keep only what enters them, and run again when their gradients are wanted.

Problem: between forward and backward a micro-batch holds every activation, for as long as the pipeline's
window has it in flight, and a home PC may not have the memory. Solution: `torch.utils.checkpoint` around
stretches of the flat loop. The second run has the arguments of the first: the very weights (a trainer steps
none that a micro-batch in flight still needs), numbers from the same seeds, and a copy of what the changing
buffers were, so that statistics are updated once. Its graph replaces the values that the first would have
kept and nothing else, so the gradients are the same to the last bit.

The last stretch of the model's last stage is not run again: its backward follows its forward at once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ravnest_p2p.model.stage_programs import StageProgram

if TYPE_CHECKING:
    from ravnest_p2p.model.compute import Slots, StageComputation


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive steps of a stage.

    Attributes:
        reads: other slots that they take from before.
        changing: buffers that they read and that training changes.
        ends: those of `reads` that nobody needs afterwards.
        gives: their results that are needed afterwards.
        again: they run again in the backward pass.
    """

    steps: tuple[Any, ...]
    reads: tuple[int, ...]
    changing: tuple[int, ...]
    ends: tuple[int, ...]
    gives: tuple[int, ...]
    again: bool

    def run(self, computation: StageComputation, slots: Slots, seed: int) -> None:
        """Fill the slots that it gives, and empty those that it ends."""
        if not self.again:
            computation.run(self.steps, slots, seed)
            return
        live = {slot: slots[slot] for slot in self.changing}
        before = {slot: tensor.clone() for slot, tensor in live.items()}
        runs = 0

        def work(*given: Tensor) -> tuple[Any, ...]:
            nonlocal runs
            runs += 1
            own: dict[int, Any] = dict(zip(self.reads, given, strict=True))
            own |= live if runs == 1 else {slot: tensor.clone() for slot, tensor in before.items()}
            computation.run(self.steps, own, seed)
            return tuple(own[slot] for slot in self.gives)

        given = [slots[slot] for slot in self.reads]
        for slot in self.ends:
            slots[slot] = None
        results = checkpoint(work, *given, use_reentrant=False, preserve_rng_state=not computation.reseed)
        for slot, result in zip(self.gives, results, strict=True):
            slots[slot] = result


def stretches(stage: StageProgram, steps: Sequence[Any], starts: Sequence[int]) -> list[Stretch]:
    """The stage's steps, cut where a new stretch starts.

    Args:
        steps: of the compiled stage, each with the `index` of its node.
        starts: layers of the program, ascending; those outside the stage do not matter.
    """
    bounds = stage.program.layer_bounds
    places = [bounds[layer - 1] for layer in starts if stage.lo < layer < stage.hi]
    first = stage.program.first_slots
    parts: list[list[Any]] = [[] for _ in range(len(places) + 1)]
    for step in steps:
        parts[bisect_right(places, step.index)].append(step)
    nodes = dict(stage.nodes)
    needed = set(stage.sent_slots)
    found: list[Stretch] = []
    for number in range(len(parts) - 1, -1, -1):
        indices = dict.fromkeys(step.index for step in parts[number])
        made = {slot for i in indices for slot in range(first[i], first[i + 1])}
        read = {slot for i in indices for slot in nodes[i].refs()} - made
        changing = read & stage.program.mutated_slots
        found.append(
            Stretch(
                steps=tuple(parts[number]),
                reads=tuple(sorted(read - changing)),
                changing=tuple(sorted(changing)),
                ends=tuple(sorted(read - needed)),
                gives=tuple(sorted(made & needed)),
                again=not (stage.is_last and number == len(parts) - 1),
            )
        )
        needed = (needed - made) | read
    return found[::-1]
