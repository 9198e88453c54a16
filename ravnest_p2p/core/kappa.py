"""How many updates clusters make between two averagings (κ), found while they train.

Problem: the right κ is known to nobody beforehand. Rounds cost time and bytes, so few are wanted; but
clusters that train by themselves go apart, and the mean of what is far apart is a bad model. How fast they go
apart changes with the learning rate by orders of magnitude, and what a round costs with the links. Solution:
after each round all members know the same few numbers, and each computes the same κ from them:

    by distance   least κ · (a / d)², where d is how far apart clusters would be after the least κ, by what
                  the round showed and the learning rate to come, and a how far they may be
    by cost       the κ with which rounds would take the share of time that they may take
    κ             the smaller of both: whoever averages cheaply averages often; changed by a factor at most

Early, when steps are large, that is near the least κ; as the learning rate falls, it grows.

The numbers of a round are known when it ends; but micro-batches of the next one, which belong to certain
samples by its κ, are under way by then (docs/adr/0005). So they decide on the round after the next one.

Source: arXiv 2310.14423 (κ with the inverse square of the learning rate; how much of it is to be set there).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ravnest_p2p.core.errors import NonFiniteError, OurFault

DISTANCE, COST, FACTOR, LEAST, MOST = "distance", "cost", "factor", "least", "most"
"""What a κ was limited by."""

SPREAD = 0.75
"""Distance grows with this power of κ: 1/2 were noise alone, 1 if each kept its direction. Measured."""

_NOTHING = 1e-12
"""Smaller numbers bound nothing."""


class KappaSpec(NamedTuple):
    """What a job may set.

    Attributes:
        least, most: bounds of κ; a job begins with the least.
        apart: how far apart clusters may be after the least κ, as a share of the mean's norm (`apart`).
        cost: share of the time that rounds may take.
        factor: that κ grows or shrinks by at most from round to round, rounded up.
        step: that κ is a multiple of.
    """

    least: int = 5
    most: int = 500
    apart: float = 0.034
    cost: float = 0.1
    factor: float = 1.5
    step: int = 1


class Seen(NamedTuple):
    """What all members know of a round when it is over, the same bits at each: means over the members.

    Attributes:
        apart: as `apart` gives it.
        round_s: that averaging took, seconds.
        update_s: that a local update takes, seconds.
    """

    apart: float
    round_s: float
    update_s: float


class Decision(NamedTuple):
    """κ of a round to come, and what led to it.

    Attributes:
        kappa: of the average cluster (`per_cluster`).
        limit: what it was limited by.
        expected: how far apart clusters would be after the least κ.
        by_distance, by_cost: what each alone would give; infinite where it sets no bound.
        seen: the numbers of the round that it follows from; None of the first two.
        why: the same in words, for logs and `status`.
    """

    kappa: int
    limit: str
    expected: float
    by_distance: float
    by_cost: float
    seen: Seen | None
    why: str


class Kappa:
    """The κ of one generation, round by round; the same at every member.

    Args:
        rate: learning rate of a local update, from 0, in any unit.
        start: κ of the first two rounds, such as the last of the generation before; the least if None.
    Attributes:
        current, following: of the round that is trained, and of the one after it.
    Raises:
        OurFault: numbers that give no κ (a job's are checked before).
    """

    def __init__(
        self, spec: KappaSpec, rate: Callable[[int], float] = lambda _: 1.0, start: int | None = None
    ) -> None:
        if not (1 <= spec.least <= spec.most and min(spec.apart, spec.cost) > 0 and spec.factor > 1):
            raise OurFault(f"no κ follows from {spec}")
        kappa = min(max(spec.least if start is None else start, spec.least), spec.most)
        first = Decision(kappa, LEAST, 0.0, math.inf, math.inf, None, f"κ {kappa}: nothing is known yet")
        self._spec, self._rate = spec, rate
        self._done = 0
        self.current = self.following = first

    def ended(self, seen: Seen) -> Decision:
        """The current round is over; returns the decision on the round after the next one.

        Raises:
            NonFiniteError: a number is negative, or none; nothing has changed.
        """
        decision = self._decide(seen)
        self._done += self.current.kappa
        self.current, self.following = self.following, decision
        return decision

    def _decide(self, seen: Seen) -> Decision:
        if not all(math.isfinite(number) and number >= 0 for number in seen):
            raise NonFiniteError(f"a round cannot have shown {seen}")
        spec, before = self._spec, self.following.kappa
        by_distance = by_cost = math.inf
        expected = self._expected(seen.apart)
        if expected > _NOTHING:
            by_distance = spec.least * (spec.apart / expected) ** 2
        if seen.update_s > _NOTHING:
            by_cost = seen.round_s / (spec.cost * seen.update_s)
        wanted, limit = min((by_distance, DISTANCE), (by_cost, COST))
        for bound, name in ((before * spec.factor, FACTOR), (spec.most, MOST)):
            wanted, limit = min((wanted, limit), (bound, name))
        for bound, name in ((before / spec.factor, FACTOR), (spec.least, LEAST)):
            wanted, limit = max((wanted, limit), (bound, name))
        whole = math.ceil(wanted - _NOTHING * wanted)
        nearest = spec.step * math.floor(whole / spec.step + 0.5)
        kappa = max(spec.least, min(spec.most, nearest))
        share = seen.round_s / (seen.round_s + self.current.kappa * seen.update_s) if seen.round_s else 0.0
        why = (
            f"κ {before} → {kappa} by {limit}: after {self.current.kappa} updates clusters were "
            f"{100 * seen.apart:.2g} % apart, so {100 * expected:.2g} % are expected after {spec.least}, "
            f"of {100 * spec.apart:.2g} %, which gives {by_distance:.3g}; rounds "
            f"take {100 * share:.2g} % of the time, of {100 * spec.cost:.2g} %, which gives {by_cost:.3g}"
        )
        return Decision(kappa, limit, expected, by_distance, by_cost, seen, why)

    def _expected(self, apart: float) -> float:
        """How far apart clusters would be after the least κ, when the round to come begins."""
        kappa, begins = self.current.kappa, self._done + self.current.kappa + self.following.kappa
        rate = sum(self._rate(self._done + update) for update in range(kappa)) / kappa
        share = self._rate(begins) / rate if rate > _NOTHING else 1.0
        return apart * share * math.pow(self._spec.least / kappa, SPREAD)


def apart(learned: float, together: float, weights: float, shares: Sequence[float]) -> float:
    """Standard deviation of clusters, as a share of the norm of their mean, whatever their number.

    The first three are sums of squares over all parameters, and known to all when a round is over: with d_c
    what cluster c learned since the last common mean, Σ w_c |d_c - d|² = Σ w_c |d_c|² - |d|².

    Args:
        learned: Σ w_c |d_c|²: each member's own, averaged as one more exact element of the segment.
        together: |d|², of the mean difference.
        weights: |common mean|².
        shares: w_c, which sum to 1.
    """
    freedom = 1 - sum(share**2 for share in shares)
    return math.sqrt(max(0.0, learned - together) / (freedom * weights)) if freedom * weights > 0 else 0.0


def per_cluster(kappa: int, planned: Sequence[int]) -> tuple[int, ...]:
    """κ of each cluster: on average `kappa`, in ratio as the plan has them, which is that of their speeds."""
    mean = sum(planned) / len(planned)
    return tuple(max(1, round(kappa * one / mean)) for one in planned)
