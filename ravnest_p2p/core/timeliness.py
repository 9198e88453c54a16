"""What speaks against a plan now, whatever its content: its epoch, its term, its author."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from .ballot import ElectionConfig, PlanHeader
from .tickets import TicketBook
from .types import Fence


class Untimely(NamedTuple):
    """What speaks against a plan.

    Attributes:
        why: empty where the plan came early by no more than clocks differ.
        passes: whether it may pass, with time or with tickets that have not been seen yet.
        until_s: when time alone takes it away.
    """

    why: str
    passes: bool
    until_s: float = inf


def untimely(
    header: PlanHeader, now_s: float, epoch: int, tickets: TicketBook, config: ElectionConfig
) -> Untimely | None:
    """What speaks against the plan; None if nothing does.

    Authors judge their own plans before they publish them, so an honest one's term can have begun by its
    own clock. By ours it comes early by no more than the two clocks differ.

    Args:
        now_s: DHT time.
        epoch: the one that this peer is in.
        tickets: of that epoch.
    """
    fence = header.fence
    if fence.epoch < epoch:
        return Untimely(f"its epoch is over, this is {epoch}", False)
    if not 0 <= fence.term < config.max_terms:
        return Untimely("no epoch has such a term", False)
    begins_s = may_begin_s(fence, config)
    if begins_s - now_s > config.clock_tolerance_s:
        what = "epoch" if fence.epoch > epoch else "term"
        return Untimely(f"its {what} is further ahead than clocks differ", False)
    if fence.epoch == epoch and not tickets.entitles(header.leader, fence.term):
        known = header.leader in tickets
        why = f"has no title to term {fence.term}" if known else "has shown no ticket of this epoch"
        return Untimely(f"its author {why}", True)
    if fence.epoch > epoch or now_s < begins_s:
        return Untimely("", True, begins_s)
    return None


def may_begin_s(fence: Fence, config: ElectionConfig) -> float:
    """When its term can have begun by the fastest clock: no plan may jump to the end of the epoch.

    The first term may begin with the epoch.
    """
    opens_s = config.grace_s - config.clock_tolerance_s
    since_s = max(0.0, opens_s + fence.term * config.min_term_s) if fence.term else 0.0
    return fence.epoch * config.epoch_s + since_s
