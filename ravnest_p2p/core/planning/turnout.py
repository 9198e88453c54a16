"""Whom a leader counted: nobody who lends may quietly be left out of a plan.

Problem: a leader that leaves out half of the swarm publishes a plan which breaks no rule, and a list of all
who were counted would be longer than the plan. Solution: who has a part is named anyway; of the rest the plan
carries a few bytes each. A follower compares them with whom it knows, and asks a few of those left out
whether they live: a leader may well know better who is dead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from functools import lru_cache

from ravnest_p2p.core.types import PeerId, Plan

PRINT_BYTES = 4
MAX_IDLE = 8192
"""Peers without a part that are listed; a plan with more lists none, and nobody minds."""

LEFT_OUT_SHARE, LEFT_OUT_LEAST = 0.25, 2
"""More than this share of the lending peers, and more than so many, may not be left out."""


def fingerprints(peers: Collection[PeerId]) -> tuple[int, ...]:
    """A number for each of these peers, ascending."""
    return tuple(sorted(map(_print, peers))) if len(peers) <= MAX_IDLE else ()


def left_out(plan: Plan, lending: Collection[PeerId]) -> list[PeerId]:
    """Lending peers that the plan's leader did not count, in order of id; none where they are few.

    Args:
        lending: live peers as the directory shows them, without those that came a moment ago.
    """
    if not _gives_parts(plan) or len(lending) > MAX_IDLE:
        return []
    named = {peer for job in plan.jobs for peer in (*job.peers, *job.standbys)}
    idle = set(plan.idle)
    missed = sorted(peer for peer in lending if peer not in named and _print(peer) not in idle)
    return missed if len(missed) > max(LEFT_OUT_LEAST, LEFT_OUT_SHARE * len(lending)) else []


def _gives_parts(plan: Plan) -> bool:
    """Whether it matters who was counted: a job waits, or is formed by this very plan."""
    return any(not job.clusters or job.generation[:2] == plan.fence for job in plan.jobs)


@lru_cache(maxsize=2 * MAX_IDLE)
def _print(peer: PeerId) -> int:
    return int.from_bytes(hashlib.sha256(peer.encode()).digest()[:PRINT_BYTES], "big")
