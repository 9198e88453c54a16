"""How a segment of a stage is averaged, round after round: its parameters, or what was learned since.

Problem: a round needs a vector to work in, the arithmetic of its chunks and the ways that these take, and
leaves a mean to be saved and weights to go on from; all of that differs with what a job lets clusters send.
Solution: two kinds of the same few methods.

    Parameters    in float32 around rings; the mean is what all go on from
    Differences   since the last common mean, written down by a codec, to an owner and back; an outer
                  optimizer makes the new mean of them; with "sparse", a cluster goes on from the mean and
                  what it still owes (`training.difference`)

Both may be averaged by a robust mean (`training.robust`), which takes an owner for each chunk.

Of differences only parameters are written down roughly; statistics in buffers cross as they are. What a codec
owes, and an outer momentum, last as long as a generation: the next one begins with the mean alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ravnest_p2p.core import compression
from ravnest_p2p.core.averaging import DIFFERENCES, NONE, PARAMETERS, SPARSE
from ravnest_p2p.core.rings import Star, Ways, ways
from ravnest_p2p.core.rings.messages import Arithmetic
from ravnest_p2p.core.robust import MEAN
from ravnest_p2p.training import averaging
from ravnest_p2p.training.bounds import MeanBound
from ravnest_p2p.training.difference import (
    KEPT,
    DifferenceValues,
    ErrorFeedback,
    difference_codec,
    sparse_outer,
)
from ravnest_p2p.training.digests import ChunkDigests
from ravnest_p2p.training.momenta import is_momentum
from ravnest_p2p.training.outer import Outer, OuterSpec
from ravnest_p2p.training.robust import RobustMean, RobustValues

Buffers = Mapping[str, Tensor]
Shares = Callable[[], Sequence[float]]


class Averaging(NamedTuple):
    """What a job says of it (`core.averaging`).

    Attributes:
        means: how contributions become one, of `core.robust.MEANS`.
        seed: of a codec's chance.
        adaptive: members tell each other how far apart they were.
    """

    kind: str = PARAMETERS
    outer: OuterSpec = OuterSpec()
    means: str = MEAN
    seed: int = 0
    adaptive: bool = False


AS_THEY_ARE = Averaging()
"""Parameters."""


class Values(Arithmetic[Any], Protocol):
    """The arithmetic of a round, and how a chunk is taken from a frame."""

    digests: ChunkDigests

    @property
    def chunks(self) -> int: ...

    def received(self, chunk: int, payload: averaging.Payload) -> Any:
        """A chunk as it came.

        Raises:
            ChunkMismatchError: there is none like it.
        """
        ...


class Means(Protocol):
    """One segment's, at one member.

    Attributes:
        names: of parameters and buffers, in the order in which they lie in both vectors.
        weights: what to go on from, after `end`: shape (elements,), float32.
        mean: what is to be saved; the same vector where that is the same.
        bound: how far means may be from what the stage has; knows how far those of the round were.
    """

    names: Sequence[str]
    weights: Tensor
    mean: Tensor
    ways: Callable[[int], Ways]
    bound: MeanBound

    def begin(self, params: Mapping[str, Tensor], buffers: Buffers, shares: Shares) -> Values:
        """Copy what the stage has; errors as of `averaging.gather`.

        Args:
            shares: of the round, as `RobustMean` takes them.
        """
        ...

    def end(self) -> None:
        """The round ended with the mean."""
        ...

    @property
    def norm(self) -> float:
        """Sum of squares of the mean, or, while a round of differences goes on, of the last one; without
        moments."""
        ...


class Parameters:
    """Args: columns: of a grid, 1 for a ring; means: not the plain one needs owners of chunks."""

    def __init__(
        self,
        params: Mapping[str, Tensor],
        buffers: Buffers,
        names: Sequence[str],
        size: int,
        columns: int,
        means: str = MEAN,
    ) -> None:
        self.names: Sequence[str] = sorted(names, key=is_momentum)
        self._means = means
        self.ways: Callable[[int], Ways] = partial(ways, columns=columns) if means == MEAN else Star
        self.weights = self.mean = averaging.vector(averaging.elements(params, buffers, names))
        self._chunks = averaging.chunk_count(self.mean.numel(), self.ways(size).count)
        self._told = averaging.elements(params, buffers, [name for name in names if not is_momentum(name)])
        self.bound = MeanBound(_chunks_of(self._told, self.mean.numel(), self._chunks))

    def begin(
        self, params: Mapping[str, Tensor], buffers: Buffers, shares: Shares = tuple
    ) -> averaging.SegmentValues:
        averaging.gather(params, buffers, self.names, self.weights)
        self.bound.begin()
        if self._means == MEAN:
            return averaging.SegmentValues(self.weights, self._chunks, self.bound)
        return RobustValues(self.weights, self._chunks, RobustMean(self._means, shares), self.bound)

    def end(self) -> None:
        """Chunk by chunk the mean took the place of what the stage had."""
        self.bound.commit()

    @property
    def norm(self) -> float:
        return _norm(self.mean[: self._told])


class Differences:
    """Begins from what the stage has: all members have to have the same.

    Args:
        size: members.
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        buffers: Buffers,
        names: Sequence[str],
        size: int,
        how: Averaging,
    ) -> None:
        self.names: Sequence[str] = sorted(
            names, key=lambda name: (name not in params, is_momentum(name), name)
        )
        self.ways: Callable[[int], Ways] = Star
        self.mean = averaging.gather(params, buffers, self.names)
        self.weights = averaging.vector(self.mean.numel())
        name = compression.NONE if how.kind == DIFFERENCES else how.kind
        stepped = [name for name in names if name in params]
        rough = averaging.elements(params, buffers, stepped)
        chunks = averaging.chunk_count(rough, size)
        codec, exact = difference_codec(name, how.seed), self.mean.numel() - rough
        self._means = how.means
        self._ahead = how.kind == SPARSE
        decay = KEPT if self._ahead else 1.0
        self._feedback = ErrorFeedback(self.mean.numel(), chunks, codec, decay, exact)
        plain = how.outer.name == NONE
        self._outer = Outer(sparse_outer(size) if self._ahead and plain else how.outer)
        self._values: DifferenceValues | None = None
        self._told = averaging.elements(params, buffers, [n for n in stepped if not is_momentum(n)])
        self.bound = MeanBound(_chunks_of(self._told, rough, chunks))

    def begin(
        self, params: Mapping[str, Tensor], buffers: Buffers, shares: Shares = tuple
    ) -> DifferenceValues:
        averaging.gather(params, buffers, self.names, self.weights)
        self._feedback.forget()
        self.bound.begin()
        robust = None if self._means == MEAN else RobustMean(self._means, shares)
        vectors = (self.weights, self.mean)
        self._values = DifferenceValues(*vectors, self._feedback, self.bound, robust, ahead=self._ahead)
        return self._values

    def end(self) -> None:
        assert self._values is not None
        self._values.settle(self._outer)
        self.bound.commit()

    @property
    def norm(self) -> float:
        return _norm(self.mean[: self._told])


def _chunks_of(told: int, elements: int, chunks: int) -> int:
    """That the first so many elements lie in, a chunk that has some of both included."""
    return -(-told * chunks // elements) if elements else 0


def _norm(mean: Tensor) -> float:
    return float(torch.dot(mean, mean))


def means_of(
    how: Averaging,
    params: Mapping[str, Tensor],
    buffers: Buffers,
    names: Sequence[str],
    size: int,
    columns: int,
) -> Means:
    """Of a segment with so many members; `Parameters` where there is nobody to differ from."""
    if how.kind == PARAMETERS or size == 1:
        return Parameters(params, buffers, names, size, columns, how.means)
    return Differences(params, buffers, names, size, how)
