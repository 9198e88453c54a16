"""What members of a round tell each other, and what is done to the chunks that they send."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, NamedTuple, Protocol, TypeVar

T = TypeVar("T")


class Arithmetic(Protocol[T]):
    """What is done to chunks; `T` is one chunk's values, underway."""

    def part(self, chunk: int, share: float) -> T:
        """The own part times its share; zeros where that is 0, for what was not trained may not be finite."""
        ...

    def add(self, chunk: int, share: float, sums: Sequence[T]) -> T:
        """The arrived sums, in this order, and then the own part times its share.

        Raises:
            NonFiniteError, ChunkMismatchError: a sum is none; the own part is unchanged.
        """
        ...

    def hold(self, chunk: int, mean: T) -> T:
        """Put the mean in the place of the own part; returns what the mean is handed on as.

        Raises:
            NonFiniteError, ChunkMismatchError: it is none; the own part is unchanged.
        """
        ...


class Outcome(str, Enum):
    """How a round ended here: with the mean; as it was, for nobody trained; or without us."""

    MEAN = "mean"
    UNCHANGED = "unchanged"
    CUT_OUT = "cut out"


class Kind(str, Enum):
    SUM = "sum"
    MEAN = "mean"


@dataclass(frozen=True, slots=True)
class Send(Generic[T]):
    """What to send to one member next.

    Attributes:
        kind, chunk, payload: None where only receipts go.
        held: chunks whose means came from that member, and that all behind us have.
        settled: chunks that every member has.
    """

    formation: int
    kind: Kind | None
    chunk: int | None
    payload: T | None
    held: tuple[int, ...]
    settled: tuple[int, ...]


class Formed(NamedTuple):
    """What a member tells all others after a death: the dead, what it holds, and of that keeps."""

    formation: int
    held: frozenset[int]
    kept: frozenset[int]
