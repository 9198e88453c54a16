"""What stages really took of their peers' memory, for the plans after.

Problem: the estimate of a stage's memory is a budget (a factor over its tensors), and a model or an allocator
may exceed it; planned by the estimate alone, the job would break in the same way again. Solution: the job's
needs are scaled by the worst of measured over estimated, whichever generation it was measured in. Less than
estimated scales nothing: a stage may not have met its peak yet. Peers may lie, so the scale is bounded: one
can make a job wait for twice the memory, and no more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ravnest_p2p.core.planning.cost import memory_of, staleness_limit
from ravnest_p2p.core.planning.cuts import LayerTable
from ravnest_p2p.core.types import JobSpec

MAX_MEMORY_SCALE = 2.0


@dataclass(frozen=True, slots=True)
class MeasuredStage:
    """What the worker of one stage took at most.

    Attributes:
        lo, hi, staleness, recompute: as of its `StageAssignment`.
        last: it computed the loss.
        peak_bytes: resident, or of the GPU's memory.
    """

    lo: int
    hi: int
    staleness: int
    recompute: bool
    last: bool
    peak_bytes: int


def memory_scale(spec: JobSpec, measured: Iterable[MeasuredStage]) -> float:
    """By how much the job's stages need more memory than estimated: from 1 to `MAX_MEMORY_SCALE`.

    Args:
        measured: of stages of this job; one that the job cannot have does not count.
    """
    table, limit, worst = LayerTable(spec.layers), staleness_limit(spec), 1.0
    for seen in measured:
        if 0 <= seen.lo < seen.hi <= table.count and 0 <= seen.staleness <= limit:
            place = (seen.lo, seen.hi, seen.staleness)
            need = memory_of(spec, table, int(seen.last), 2, *place, recompute=seen.recompute, remake=False)
            worst = max(worst, seen.peak_bytes / need.needed)
    return min(round(worst, 3), MAX_MEMORY_SCALE)
