"""The ways of chunks among the members of a segment: where each sum grows, and how its mean comes back.

Problem: averaging moves least when every member adds its own part to a sum that passes by, and the finished
mean goes round once; but one ring of a thousand members would take two thousand steps of latency. Solution:
a set of ways, each a tree along which a sum grows to one member, and a tree along which the mean spreads
from there; the chunks of a segment take the ways in turn. Whatever the trees are, each member adds in a fixed
order and all get one member's result, so all hold the same bits.

    Ring   C ways; way w begins at member w:   w → w+1 → … → w-1 (complete) → w → … → w-2
    Grid   one way for each place: along each row to one column, along that column, and back;
           rows + columns steps instead of members, and no more bytes
    Star   C ways; way w goes from all others to member w and back: what loses by being
           encoded is encoded twice only, and every link is needed

Places are positions among the members that take part: 0 to size - 1.

Source: arXiv 2401.01728 (rings); Thakur, Rabenseifner and Gropp, "Optimization of collective communication
operations in MPICH", 2005 (a reduction and a copy of parts, 2(C-1)/C of the bytes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

from ravnest_p2p.core.errors import OurFault

WINDOW = 8


class Hop(NamedTuple):
    """A member's place on one way.

    Attributes:
        takes: places whose sums it adds to its own part, in this order.
        gives: place that gets the sum; None where it is complete.
        source: place that the mean comes from; None where the sum is complete.
        passes: places that it hands the mean on to.
        sum_togo: hops of its sum until the last member has the mean.
        mean_togo: hops of the mean from here until the last member behind has it.
    """

    takes: tuple[int, ...]
    gives: int | None
    source: int | None
    passes: tuple[int, ...]
    sum_togo: int
    mean_togo: int


class Ways(Protocol):
    """Chunk number n of those that are left to average takes way n mod `count`."""

    @property
    def count(self) -> int: ...

    @property
    def branch(self) -> bool:
        """Whether some member hands a mean on to several."""
        ...

    @property
    def window(self) -> int:
        """Chunks of its own that a member has underway to another one at most."""
        ...

    def hop(self, way: int, place: int) -> Hop: ...

    def completed_by(self, place: int) -> int:
        """A way whose sums that member completes; its means spread from there."""
        ...


@dataclass(frozen=True, slots=True)
class Ring:
    """Each sends to the next, the last to the first."""

    size: int
    branch: ClassVar[bool] = False
    window: ClassVar[int] = WINDOW

    @property
    def count(self) -> int:
        return self.size

    def hop(self, way: int, place: int) -> Hop:
        summed = (place - way) % self.size
        copied = (summed + 1) % self.size
        last = self.size - 1
        before, after = (place - 1) % self.size, (place + 1) % self.size
        return Hop(
            takes=(before,) if summed else (),
            gives=after if summed < last else None,
            source=before if copied else None,
            passes=(after,) if copied < last else (),
            sum_togo=2 * last - summed,
            mean_togo=last - copied,
        )

    def completed_by(self, place: int) -> int:
        return (place + 1) % self.size


@dataclass(frozen=True, slots=True)
class Star:
    """Way w is member w's: all others send it their parts, and it sends all the mean."""

    size: int
    window: ClassVar[int] = WINDOW

    @property
    def branch(self) -> bool:
        return self.size > 2

    @property
    def count(self) -> int:
        return self.size

    def hop(self, way: int, place: int) -> Hop:
        if place != way:
            return Hop(takes=(), gives=way, source=way, passes=(), sum_togo=2, mean_togo=0)
        others = tuple(other for other in range(self.size) if other != way)
        last = 1 if others else 0
        return Hop(takes=others, gives=None, source=None, passes=others, sum_togo=last, mean_togo=last)

    def completed_by(self, place: int) -> int:
        return place


class Grid:
    """Rows of places, the first of which may be one longer; in a shorter one a member stands for two columns.

    Which one that is changes from way to way, so that all send alike.

    Args:
        size: members, 1 or more.
        columns: 1 to size, at most so many.
    Raises:
        OurFault: numbers that make no grid.
    """

    branch = True

    def __init__(self, size: int, columns: int) -> None:
        if not 1 <= columns <= size:
            raise OurFault(f"a grid of {size} members in {columns} columns")
        self._rows = -(-size // columns)
        self._short, self._longer = divmod(size, self._rows)
        self._columns = -(-size // self._rows)

    @property
    def count(self) -> int:
        return self._rows * self._columns

    @property
    def window(self) -> int:
        return WINDOW * self._rows  # each chunk is begun once in each row

    def hop(self, way: int, place: int) -> Hop:
        first_row, column = divmod(way, self._columns)
        stands = column + first_row
        row, at = self._find(place)
        length = self._length(row)
        whole = self._togo(first_row - 1, self._rows - 1)
        # Along the row to the one who stands for the column; that one is last and goes on along the column.
        along = (at - stands - 1) % length
        before, after = (self._place(row, at + step) for step in (-1, 1))
        if along < length - 1:
            return Hop(
                takes=(before,) if along else (),
                gives=after,
                source=before,
                passes=(after,) if along < length - 2 else (),
                sum_togo=length - 1 - along + (first_row - 1 - row) % self._rows + whole,
                mean_togo=length - 2 - along,
            )
        summed = (row - first_row) % self._rows
        copied = (summed + 1) % self._rows
        above, below = (self._place(row + step, stands) for step in (-1, 1))
        down = (below,) if copied < self._rows - 1 else ()
        aside = (after,) if length > 1 else ()
        return Hop(
            takes=((before,) if length > 1 else ()) + ((above,) if summed else ()),
            gives=below if summed < self._rows - 1 else None,
            source=above if copied else None,
            passes=down + aside,
            sum_togo=self._rows - 1 - summed + whole,
            mean_togo=self._togo(row, self._rows - 1 - copied),
        )

    def completed_by(self, place: int) -> int:
        row, at = self._find(place)
        first_row = (row + 1) % self._rows
        return first_row * self._columns + (at - first_row) % self._length(row)

    def _togo(self, row: int, further: int) -> int:
        """Hops of a mean from who has it in a row to the last one in it and in so many rows below."""
        return further + self._length((row + further) % self._rows) - 1

    def _length(self, row: int) -> int:
        return self._short + (row < self._longer)

    def _find(self, place: int) -> tuple[int, int]:
        """Its row, and where it is in it."""
        beyond = place - self._longer * (self._short + 1)
        if beyond < 0:
            return divmod(place, self._short + 1)
        row, at = divmod(beyond, self._short)
        return self._longer + row, at

    def _place(self, row: int, at: int) -> int:
        row %= self._rows
        return row * self._short + min(row, self._longer) + at % self._length(row)


def ways(size: int, columns: int) -> Ways:
    """A ring where all members are in one row or in one column, else a grid of so many columns at most."""
    return Ring(size) if columns == 1 or columns >= size else Grid(size, columns)


def neighbours(found: Ways, place: int, chunks: int | None = None) -> tuple[set[int], set[int]]:
    """Places that it takes from, and places that it sends to; on the ways of so many chunks, or on all."""
    taken = found.count if chunks is None else min(found.count, chunks)
    hops = [found.hop(way, place) for way in range(taken)]
    before = {other for hop in hops for other in (*hop.takes, hop.source) if other is not None}
    after = {other for hop in hops for other in (hop.gives, *hop.passes) if other is not None}
    return before, after
