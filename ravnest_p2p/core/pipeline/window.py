"""How far a stage runs ahead, from what computations and messages really take.

Problem: the window that keeps a pipeline busy depends on its links, and those are not what they were when the
plan was made: a frame of a megabyte takes several round trips until the transport has found the line's rate,
others use the line, a codec takes its time. Too narrow, and stages idle; too wide, and gradients are staler
than they have to be. Solution: every gradient that comes back says how long its micro-batch was held by the
stage after, so the rest of the time was spent on the way; no two clocks are compared. With T, the longest
that any stage computes for one micro-batch or any link carries it, C = F + B of a stage, and R both ways of
the link before it, a micro-batch is under way, beyond stage s and in units of T, for

    w_s = Σ over the stages r after s of (R_r + C_r) / T,

and stage s has to have C_s / T + w_s of them in flight. Its staleness is one less. Where all stages take
equally long and every R is 2ℓ times half a micro-batch's computation, that is the design's
τ_s = (1+ℓ)(P−1−s). Stages that are always busy alternate forwards and backwards in step, and what arrives
between two steps waits for the next, at every stage; so each term counts as the whole number above, unless it
is only a little more than one. Computations count with what they usually vary by, for a stage whose neighbour
is late by that much should not idle. Ways vary otherwise: nearly all take equally long, and one in ten a
round trip more, where a transport waited for room. So a way counts as long as it has to for the few that are
longer to idle the stage for no more than a hundredth of the time.

What is chosen stays within the plan's bound, which memory and the job set. "adaptive" bounds it by the
paper's O(K^¼) too, K updates having been made: nearly synchronous at first, wider as training settles.

Source: arXiv 2401.01728, section 4 (K^¼); RFC 6298 (mean and deviation of a round trip).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import InitVar, dataclass, field
from functools import partial
from typing import NamedTuple

from ravnest_p2p.core.pipeline.schedule import Backward, Forward, Op

FIXED, MEASURED, ADAPTIVE = "fixed", "measured", "adaptive"
STALENESS_MODES = (FIXED, MEASURED, ADAPTIVE)
"""What a stage's τ is: always the plan's; what was measured, within it; and within the paper's bound too."""

MEAN_SHARE, DEVIATION_SHARE = 1 / 8, 1 / 4
"""Weight of the newest measurement in a moving mean, and of its distance above it in the mean distance."""

TOLERANCE = 0.01
"""Of a micro-batch's time: for less than this much idling no micro-batch more is let ahead."""

STEP_TOLERANCE = 0.1
"""The same for one link of several, where a whole micro-batch for each would double the staleness."""

PATIENCE = 48
"""Micro-batches for which a narrower window has to be enough before it is taken."""

LINK_SHARE = 0.9
"""Where a link needs this much of the slowest computation, what waits in front of it does not count."""


def paper_bound(updates: int) -> int:
    """Bound O(K^¼) on τ after K updates: 1 at first, 2 after one, 3 after 16, 4 after 81, 5 after 256."""
    return int(math.pow(updates, 0.25) + 1e-9) + 1


class Echo(NamedTuple):
    """What a stage says of a micro-batch with its gradient, seconds.

    Attributes:
        held_s: from the activation's arrival to the gradient's leaving.
        compute_s: of one micro-batch at that stage, forward and backward, with what it usually varies by.
        slowest_s: longest computation, or way over a link, of one micro-batch there or beyond.
        beyond: micro-batches under way beyond that stage.
    """

    held_s: float
    compute_s: float
    slowest_s: float
    beyond: float


def covering(times_s: Iterable[float], excess_s: float) -> float:
    """Least time x that the times exceed by `excess_s` on average, those below it counting as 0."""
    longest_first = sorted(times_s, reverse=True)
    sum_s = -excess_s * len(longest_first)
    for n, time_s in enumerate(longest_first):
        # As x falls, each time that it reaches is one more that exceeds it.
        if n and sum_s / n >= time_s:
            return sum_s / n
        sum_s += time_s
    return max(0.0, sum_s / max(1, len(longest_first)))


@dataclass(slots=True)
class Moving:
    """Moving mean of what was measured, and by how much single measurements are above it (RFC 6298)."""

    mean: float = 0.0
    deviation: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        first, distance = self.count == 0, max(0.0, value - self.mean)
        self.count += 1
        self.deviation = 0.0 if first else self.deviation + DEVIATION_SHARE * (distance - self.deviation)
        self.mean = value if first else self.mean + MEAN_SHARE * (value - self.mean)


@dataclass(slots=True, eq=False)
class Window:
    """Chooses one stage's τ. It is told what happened and when, on any one clock.

    Args:
        after: stages after this one; 0 for the last, which never runs ahead.
        bound: the plan's bound on τ.
        mode: of `STALENESS_MODES`.
        updates: of the job so far.

    Attributes:
        chosen: τ now.
    """

    after: int
    bound: int
    mode: str = MEASURED
    updates: InitVar[int] = 0
    chosen: int = field(init=False)
    _ops: dict[type[Op], Moving] = field(init=False, repr=False)
    _way: Moving = field(default_factory=Moving, init=False, repr=False)
    _ways_s: deque[float] = field(default_factory=partial(deque, maxlen=PATIENCE), init=False, repr=False)
    _link_s: dict[str, float] = field(default_factory=dict, init=False, repr=False)
    _left_s: dict[int, float] = field(default_factory=dict, init=False, repr=False)
    _arrived_s: dict[int, float] = field(default_factory=dict, init=False, repr=False)
    _slowest_before_s: float = field(default=0.0, init=False, repr=False)
    _next: Echo = field(default=Echo(0.0, 0.0, 0.0, 0.0), init=False, repr=False)
    _targets: deque[int] = field(default_factory=partial(deque, maxlen=PATIENCE), init=False, repr=False)

    def __post_init__(self, updates: int) -> None:
        self.chosen = self.bound if self.mode == FIXED else min(self.limit(updates), self.after)
        self._ops = {Forward: Moving(), Backward: Moving()}

    def took(self, op: Op, seconds: float) -> None:
        """A forward or backward was computed for so long; other operations do not count."""
        if isinstance(op, Forward | Backward):
            self._ops[type(op)].add(seconds)

    def link_took(self, what: str, seconds: float) -> None:
        """A frame of activations or gradients kept its link, in this direction, busy for so long."""
        self._link_s[what] = seconds

    def activation_arrived(self, i: int, now_s: float, slowest_s: float) -> None:
        """Micro-batch i came in; no stage or link before this one takes longer than `slowest_s` for one."""
        self._arrived_s[i] = now_s
        self._slowest_before_s = slowest_s

    def activation_left(self, i: int, now_s: float) -> float:
        """Micro-batch i goes to the next stage; returns what that is told as `slowest_s`."""
        if self.after:
            self._left_s[i] = now_s
        return max(self._slowest_before_s, self._slowest_here_s)

    def gradient_arrived(self, i: int, now_s: float, echo: Echo) -> None:
        """Micro-batch i came back from the next stage."""
        way_s = max(0.0, now_s - self._left_s.pop(i, now_s) - echo.held_s)
        self._way.add(way_s)
        self._ways_s.append(way_s)
        self._next = echo

    def gradient_left(self, i: int, now_s: float) -> Echo:
        """Micro-batch i goes back to the stage before; returns what that is told."""
        return Echo(
            now_s - self._arrived_s.pop(i, now_s),
            self._usual_s,
            max(self._slowest_here_s, self._next.slowest_s),
            self._under_way,
        )

    @property
    def wanted(self) -> float:
        """τ that what was measured asks for, without any bound; the least possible before it is known."""
        if not self._way.count or not self._compute_s:
            return float(self.after)
        return self._usual_s / self._slowest_s + self._under_way - 1.0

    @property
    def way_s(self) -> float:
        """Mean of both ways between this stage and the next; 0 before it is known."""
        return self._way.mean

    @property
    def pace_s(self) -> float:
        """T, the least time from one micro-batch to the next that stages and links allow."""
        return self._slowest_s

    def limit(self, updates: int) -> int:
        """Bound on τ after so many updates of the job."""
        return min(self.bound, paper_bound(updates)) if self.mode == ADAPTIVE else self.bound

    def choose(self, updates: int) -> int:
        """τ from now on, so many updates of the job having been made; asked after every micro-batch.

        Wider at once; narrower only where that would have been enough for some time.
        """
        if self.mode == FIXED or not self.after:
            return self.chosen
        limit = self.limit(updates)
        target = min(limit, max(self.after, math.ceil(self.wanted - TOLERANCE)))
        self._targets.append(target)
        if target > self.chosen or self.chosen > limit:
            self.chosen = target
        elif len(self._targets) == PATIENCE:
            self.chosen = max(self._targets)
        return self.chosen

    @property
    def _compute_s(self) -> float:
        forward, backward = (self._ops[kind] for kind in (Forward, Backward))
        return forward.mean + backward.mean if forward.count and backward.count else 0.0

    @property
    def _usual_s(self) -> float:
        return self._compute_s + sum(moving.deviation for moving in self._ops.values())

    @property
    def _slowest_here_s(self) -> float:
        return max(self._compute_s, *self._link_s.values(), 0.0)

    @property
    def _slowest_s(self) -> float:
        return max(self._slowest_before_s, self._slowest_here_s, self._next.slowest_s)

    @property
    def _under_way(self) -> float:
        """w of this stage. Before a link that is full anyway, frames wait longer the wider the window is."""
        if not (self._way.count and self._compute_s):
            return self._next.beyond
        full = max(self._link_s.values(), default=0.0) >= LINK_SHARE * self._slowest_s
        way_s = min(self._ways_s) if full else covering(self._ways_s, TOLERANCE * self._slowest_s)
        hop = (way_s + self._next.compute_s) / self._slowest_s
        return self._next.beyond + (math.ceil(hop) if hop % 1.0 > STEP_TOLERANCE else hop)
