"""Averaging among clusters: segments, the ways of chunks, and one member's part in a round."""

from ravnest_p2p.core.rings.agreed import AgreedRound, Result, Showed
from ravnest_p2p.core.rings.agreement import DIGEST_BYTES, Digests, Dispute, dispute, rows
from ravnest_p2p.core.rings.delivery import deliver
from ravnest_p2p.core.rings.messages import Arithmetic, Formed, Kind, Outcome, Send
from ravnest_p2p.core.rings.round import SegmentRound
from ravnest_p2p.core.rings.segments import Member, Segment, chunk_bounds, normalised, segments, shares_before
from ravnest_p2p.core.rings.ways import Grid, Hop, Ring, Star, Ways, neighbours, ways

__all__ = [
    "DIGEST_BYTES",
    "AgreedRound",
    "Arithmetic",
    "Digests",
    "Dispute",
    "Formed",
    "Grid",
    "Hop",
    "Kind",
    "Member",
    "Outcome",
    "Result",
    "Ring",
    "Segment",
    "SegmentRound",
    "Send",
    "Showed",
    "Star",
    "Ways",
    "chunk_bounds",
    "deliver",
    "dispute",
    "neighbours",
    "normalised",
    "rows",
    "segments",
    "shares_before",
    "ways",
]
