"""What speaks against a plan now, whatever its content: its epoch, its term, its author."""

from __future__ import annotations

from math import floor

from .ballot import ElectionConfig, PlanHeader
from .tickets import TicketBook


def untimely(
    header: PlanHeader, now_s: float, epoch: int, tickets: TicketBook, config: ElectionConfig
) -> tuple[str, bool] | None:
    """What speaks against the plan, and whether that may pass; None if nothing does.

    The reason is empty where the plan came early by no more than clocks differ.

    Args:
        now_s: DHT time.
        epoch: the one that this peer is in.
        tickets: of that epoch.
    """
    fence = header.fence
    if fence.epoch < epoch:
        return f"its epoch is over, this is {epoch}", False
    if fence.epoch > epoch:
        ahead_s = fence.epoch * config.epoch_s - now_s
        if ahead_s > config.clock_tolerance_s:
            return f"its epoch begins in {ahead_s:.1f} s: a clock is wrong", False
        return "", True
    if not 0 <= fence.term < _terms_possible(now_s, epoch, config):
        return "its term cannot have begun yet", False
    if not tickets.entitles(header.leader, fence.term):
        known = header.leader in tickets
        why = f"has no title to term {fence.term}" if known else "has shown no ticket of this epoch"
        return f"its author {why}", True
    return None


def _terms_possible(now_s: float, epoch: int, config: ElectionConfig) -> int:
    """How many terms can have begun by the fastest clock: no plan may jump to the end of the epoch."""
    since_s = now_s + config.clock_tolerance_s - epoch * config.epoch_s - config.grace_s
    return min(config.max_terms, 1 + max(0, floor(since_s / config.min_term_s)))
