"""Feed a round what another member sent."""

from __future__ import annotations

from ravnest_p2p.core.rings.messages import Kind, Send, T
from ravnest_p2p.core.rings.round import SegmentRound


def deliver(to: SegmentRound[T], sender: int, send: Send[T]) -> None:
    """Feed a member what another one sent; errors as of what it feeds."""
    if send.held or send.settled:
        to.noted(sender, send.formation, send.held, send.settled)
    if send.kind is None or send.chunk is None or send.payload is None:
        return
    arrived = to.sum_arrived if send.kind is Kind.SUM else to.mean_arrived
    arrived(sender, send.formation, send.chunk, send.payload)
