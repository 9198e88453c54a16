"""How a job goes, as values with attributes instead of the maps that peers send.

A peer of a later version may say more, which is ignored, and one of an earlier version less, which has a
default; a value of a wrong type is refused.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ravnest_p2p.core.errors import FrameFormatError
from ravnest_p2p.core.types import JobPhase


class _View(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class StageProgress(_View):
    """One stage: layers [lo, hi) on `peer`.

    Attributes:
        busy: share of the time that it computes, 0 to 1.
        staleness: updates between a forward and its backward, the most so far.
        window: micro-batches that may be in flight now, one more than its τ; `window_wanted` of them would
            keep it busy, by what was measured, whatever the bounds.
        staleness_limit: bound on τ now, which with "adaptive" grows; `staleness_bound` is the plan's.
        ahead: how stale what is computed is, in micro-batches: at the forward of so many of them, 0, 1, 2, …
            were in flight before, since the generation began. `crossed` of all these ran on the early step,
            as the update before theirs was not complete.
        window_needed: how many it has wanted for some time, where it may not have so many; else None. The
            job's `advice` says what to do.
        way_s: mean of both ways of a micro-batch to the stage after and back, of which an empty message takes
            `rtt_s`; `pace_s` is the least time between two micro-batches in this pipeline.
        in_flight: micro-batches forwarded whose gradients are not back yet.
        bytes_sent: to other peers, since the generation began.
        peak_memory_bytes: most that its worker took; on a GPU, of the GPU's memory.
        peak_tensor_bytes: most bytes of tensors at once, in its first updates.
        recompute: it computes activations a second time instead of keeping them.
        skipped: micro-batches left out since the generation began, as their values were not finite;
            `skipped_updates` counts updates that this stage did not make for the same reason.
        training_s: since the generation began to train; rounds of averaging took `averaging_s` of it.
    """

    peer: str
    stage: int
    lo: int = 0
    hi: int = 0
    phase: str = ""
    version: int = 0
    busy: float | None = None
    staleness: int | None = None
    window: int | None = None
    window_wanted: float | None = None
    staleness_limit: int | None = None
    staleness_bound: int | None = None
    ahead: tuple[int, ...] = ()
    crossed: int = 0
    window_needed: float | None = None
    way_s: float = 0.0
    rtt_s: float = 0.0
    pace_s: float = 0.0
    in_flight: int = 0
    bytes_sent: int = 0
    peak_memory_bytes: int = 0
    peak_tensor_bytes: int = 0
    recompute: bool = False
    skipped: int = 0
    skipped_updates: int = 0
    training_s: float = 0.0
    averaging_s: float = 0.0


class ClusterProgress(_View):
    """One copy of the model, and its stages in pipeline order.

    Attributes:
        updates_per_round: that it makes between two rounds of the plan; `overlap` of those of the next one
            while a round goes on.
        kappa: updates that clusters make between two averagings, where that is found while they train;
            `kappa_why` has the numbers that led to it.
    """

    loss: float | None = None
    updates: int = 0
    updates_per_round: int = 0
    overlap: int = 0
    kappa: int | None = None
    kappa_why: str = ""
    stages: tuple[StageProgress, ...] = ()


class Progress(_View):
    """A job at one moment.

    Attributes:
        batches_done: batches (of m micro-batches) trained and saved, of `total_batches`; `batches_trained`
            counts those too that the next averaging will save.
        spares: lending peers without a stage of this job; of these, `standbys` keep copies of its state.
        lineage: (generation, batches done where it began), the first one first.
        loss: smoothed mean over the clusters, None before the first.
        losses: (batch, loss) from the start on, thinned out.
        reason: why it waits, was cancelled or failed.
        skipped: micro-batches that were left out in this generation, as values were not finite;
            `skipped_why` says where the newest arose.
        advice: what would make it faster or better, in words.
    """

    job: str
    name: str = ""
    phase: JobPhase
    reason: str = ""
    generation: str | None = None
    epoch: int | None = None
    term: int | None = None
    leader: str | None = None
    batches_done: int = 0
    batches_trained: int = 0
    total_batches: int = 0
    samples: int = 0
    samples_per_s: float = 0.0
    loss: float | None = None
    elapsed_s: float = 0.0
    bytes_sent: int = 0
    skipped: int = 0
    skipped_why: str = ""
    advice: tuple[str, ...] = ()
    clusters: tuple[ClusterProgress, ...] = ()
    spares: tuple[str, ...] = ()
    standbys: tuple[str, ...] = ()
    lineage: tuple[tuple[str, int], ...] = ()
    losses: tuple[tuple[int, float], ...] = ()

    @property
    def over(self) -> bool:
        """Whether nothing will change any more."""
        return self.phase in (JobPhase.DONE, JobPhase.CANCELLED, JobPhase.FAILED)

    @property
    def mark(self) -> tuple[object, ...]:
        """What has to differ for this to count as news."""
        return (self.phase, self.reason, self.generation, self.batches_done)

    @classmethod
    def of(cls, status: dict[str, Any]) -> Progress:
        """The view of a status map.

        Raises:
            FrameFormatError: a field of a wrong type, or without the job or its phase.
        """
        try:
            return cls.model_validate(status)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise FrameFormatError(f"a job's status with a malformed {where}: {first['msg']}") from None
