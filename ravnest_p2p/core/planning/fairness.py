"""Whose job is formed next, and of how many of the free peers.

Problem: by order of submission alone, one user with many jobs leaves nothing for the others. Solution: users
take turns by what they have: the next job is one of whoever trains on the fewest peers so far, and it gets at
first what an equal share of the users, and of this user's jobs, comes to. Jobs that had begun go before new
ones; within a user the order of submission counts.

Identities cost nothing, so that a user can be many: this keeps order among honest users, no more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ravnest_p2p.core.types import JobId, PeerId


class Turn(NamedTuple):
    """The job to form, and of how many peers at most, if that is enough for it."""

    job: JobId
    most_peers: int


def next_turn(
    waiting: Mapping[JobId, bool],
    owners: Mapping[JobId, PeerId],
    holding: Mapping[JobId, int],
    free: int,
) -> Turn:
    """The next of the waiting jobs.

    Args:
        waiting: at least one, in order of submission, each with whether it had begun.
        owners: who submitted them; a job of whom that is not known stands for itself.
        holding: peers that train each job, of all jobs that were kept or formed.
        free: peers that train none.
    """

    def owner(job: JobId) -> str:
        return owners.get(job) or job

    peers = Counter[str]()
    for job, count in holding.items():
        peers[owner(job)] += count
    # Of equals `min` takes the first, which is the oldest.
    job = min(waiting, key=lambda each: (not waiting[each], peers[owner(each)]))
    alike = [each for each, begun in waiting.items() if begun == waiting[job]]
    shares = _owners(alike, owner(job), owners)
    return Turn(job, max(1, free // shares))


def _owners(jobs: Sequence[JobId], owner: str, owners: Mapping[JobId, PeerId]) -> int:
    """Into how many parts the peers go: one for each user, and of this user's one for each job."""
    names: list[str] = [owners.get(job) or job for job in jobs]
    return len(set(names)) * names.count(owner)
