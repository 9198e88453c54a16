"""When a stage's window is too narrow, what that costs, and what would help.

Problem: a stage that may not have as many micro-batches in flight as its links ask for idles, and nothing
fails; people see a slow job, and not which of five settings to change. Solution: what was measured and what
is allowed are compared after every update. Where the difference lasts, one sentence names the stage, both
numbers, the share of its time that is lost, and the cause of the bound with its remedy.

With W micro-batches in flight, each of which is under way for w times the slowest stage's time, W of them are
computed in w such times: the stage is busy for W / w of the time.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from functools import partial

from ravnest_p2p.core.pipeline.window import FIXED, TOLERANCE
from ravnest_p2p.core.types import ClusterPlan, JobSpec

SLACK = 1.1
"""Wanted over allowed micro-batches in flight, up to which nothing is said."""

LASTING = 8
"""Updates in a row after which it is no passing trouble of the line, nor over."""

_SHORTER_WAY = (
    "Frames take most of the way, not distance: larger micro-batches help, and compression of large frames"
)


class Cause(Enum):
    """What holds a stage's τ down."""

    PAPER = "the paper's K^¼"
    PREDICTED = "the plan's prediction"
    MEMORY = "a peer's memory"
    UPDATE = "m"
    JOB = "the job's bound"


def too_narrow(wanted: float, allowed: int) -> bool:
    """Whether so many more micro-batches in flight are wanted than allowed that it counts."""
    return wanted > SLACK * allowed


@dataclass(slots=True)
class Shortage:
    """Whether a window has been too narrow for some time.

    Attributes:
        lasting: it has, by all that was told.
    """

    lasting: bool = field(default=False, init=False)
    _newest: deque[float] = field(default_factory=partial(deque, maxlen=LASTING), init=False, repr=False)

    def told(self, wanted: float, allowed: int) -> None:
        """An update was made: so many micro-batches in flight were wanted, and so many allowed."""
        self._newest.append(wanted if too_narrow(wanted, allowed) else 0.0)
        short = sum(map(bool, self._newest))
        self.lasting = short == LASTING or (self.lasting and short > 0)

    @property
    def wanted(self) -> float:
        """Mean of what was wanted in the newest updates in which it was too much; 0 unless that lasts."""
        short = [wanted for wanted in tuple(self._newest) if wanted]
        return sum(short) / len(short) if self.lasting and short else 0.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What was measured of one stage.

    Attributes:
        wanted, allowed: micro-batches in flight.
        updates: of the job so far.
        carried: see `carries`, of its link or one after it.
    """

    wanted: float
    allowed: int
    updates: int
    carried: bool = False

    @property
    def busy(self) -> float:
        """Share of its time that the window leaves, 0 to 1."""
        return min(1.0, self.allowed / self.wanted) if self.wanted > 0 else 1.0


def carries(way_s: float, rtt_s: float, pace_s: float) -> bool:
    """Whether frames, more than distance, make the way to the next stage and back a long one.

    Args:
        way_s: both ways of a micro-batch.
        rtt_s: of a message without content; 0 where that is not known.
        pace_s: of the slowest stage, from one micro-batch to the next.
    """
    return way_s >= pace_s and way_s > 2 * rtt_s > 0


def cause_of(spec: JobSpec, cluster: ClusterPlan, stage: int, allowed: int) -> Cause:
    """Which of the bounds on the stage's τ is the one that counts."""
    bound, of_job = cluster.stages[stage].staleness, spec.staleness_bound
    if allowed - 1 < bound:
        return Cause.PAPER
    if bound < min(of_job, spec.microbatches_per_update):
        return Cause.PREDICTED if spec.staleness == FIXED else Cause.MEMORY
    return Cause.UPDATE if spec.microbatches_per_update <= of_job else Cause.JOB


def advice(spec: JobSpec, cluster: ClusterPlan, stage: int, seen: Seen) -> str:
    """One sentence for people on a stage whose window is too narrow."""
    tau = max(0, math.ceil(seen.wanted - TOLERANCE) - 1)
    idle, why = 100 * (1 - seen.busy), _reason(spec, cluster, stage, seen, tau)
    text = (
        f"stage {stage} may have {seen.allowed} micro-batch{'es' * (seen.allowed > 1)} in flight and needs "
        f"{seen.wanted:.3g}: it idles about {idle:.0f} % of the time, since {why}"
    )
    return f"{text}. {_SHORTER_WAY}" if seen.carried else text


def _reason(spec: JobSpec, cluster: ClusterPlan, stage: int, seen: Seen, tau: int) -> str:
    """What holds the window down, and what to do."""
    m, place = spec.microbatches_per_update, cluster.stages[stage]
    match cause_of(spec, cluster, stage, seen.allowed):
        case Cause.PAPER:
            later = min(tau, place.staleness)
            return (
                f'staleness="adaptive" allows τ = {seen.allowed - 1} after {seen.updates} updates, and '
                f'{later} from update {(later - 1) ** 4} on: "measured" would not wait for that'
            )
        case Cause.PREDICTED:
            return f'staleness="fixed" keeps the plan\'s τ = {place.staleness}: "measured" would widen it'
        case Cause.MEMORY:
            first = next(s for s, other in enumerate(cluster.stages) if other.staleness == place.staleness)
            whose = "its peer's memory" if first == stage else f"the memory of stage {first}'s peer"
            less = "more stages" if cluster.stages[first].recompute else "checkpoint=True"
            return f"{whose} allows no more: lend more there (--memory), or submit with {less}"
        case Cause.UPDATE:
            return f"τ never exceeds m = {m}: submit with microbatches_per_update={2 * tau}"
        case Cause.JOB:
            more = f" and microbatches_per_update={2 * tau}" if m < 2 * tau else ""
            of_job = spec.staleness_bound
            return f"staleness_bound={of_job} allows no more: submit with staleness_bound={tau}{more}"
