"""Sums that pass through a member: what has arrived of each chunk, and what is ready to go on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Generic

from ravnest_p2p.core.errors import ChunkMismatchError
from ravnest_p2p.core.rings.messages import T


class Sums(Generic[T]):
    """Of one formation.

    Args:
        summed: chunks of which no sum is due any more.
    Attributes:
        done: sums that wait for their link.
    """

    def __init__(self, summed: Collection[int]) -> None:
        self.done: dict[int, T] = {}
        self._arrived: dict[int, dict[int, T]] = {}
        self._summed = set(summed)

    def __len__(self) -> int:
        return sum(map(len, self._arrived.values())) + len(self.done)

    def arrived(self, chunk: int, place: int, takes: Sequence[int], payload: T) -> list[T] | None:
        """Keep what came from a place; with the last one, all that the chunk takes, in that order, instead.

        Raises:
            ChunkMismatchError: nothing is due from there; nothing has changed.
        """
        arrived = self._arrived.setdefault(chunk, {})
        if place not in takes or place in arrived or chunk in self._summed:
            raise ChunkMismatchError(f"no sum of chunk {chunk} is due from there")
        if len(arrived) + 1 < len(takes):
            arrived[place] = payload
            return None
        return [payload if taken == place else arrived[taken] for taken in takes]

    def added(self, chunk: int) -> None:
        """All that arrived is in a sum with our own part."""
        del self._arrived[chunk]
        self._summed.add(chunk)
