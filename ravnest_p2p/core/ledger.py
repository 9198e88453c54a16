"""Which samples are trained by whom, exactly once, through crashes and re-forming.

Problem: clusters come and go, and the state falls back to an older round when a piece is lost; still every
batch must count exactly once. Solution: nobody hands out work. What is trained follows from numbers that
every peer knows: `DataOrder` says which samples are in batch b, `Shares` which cluster trains batch b in
which local update of a generation, and a generation starts where the state it restores ends. `Ledger` checks
that from the outside: it takes what really happened and names each batch that was lost or counted twice.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

from ravnest_p2p.core.errors import OurFault
from ravnest_p2p.core.types import Generation

SEED_STRIDE = 0x9E3779B1
"""Spreads job seeds far apart, so that micro-batch numbers added to them never meet."""

_MASK = (1 << 64) - 1
_FEISTEL_ROUNDS = 8


def _mix(x: int) -> int:
    """Spread the bits of a 64-bit integer over a 64-bit integer (the finalizer of splitmix64)."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


@lru_cache(maxsize=64)
def _round_keys(seed: int, pass_number: int) -> tuple[int, ...]:
    start = _mix((_mix((seed + 0x9E3779B97F4A7C15) & _MASK) + pass_number) & _MASK)
    return tuple(_mix((start + r * 0x9E3779B97F4A7C15) & _MASK) for r in range(1, _FEISTEL_ROUNDS + 1))


@dataclass(frozen=True, slots=True)
class DataOrder:
    """The job's stream of samples: one seeded permutation of all samples after another, one a pass.

    Any position is found without holding the permutation: a Feistel network over a grid of a × b ≥ n places,
    walked on until it falls on one of the n samples (rarely needed, since a·b - n < 2√n + 1).
    """

    samples: int
    microbatch_size: int
    microbatches_per_update: int
    seed: int

    def __post_init__(self) -> None:
        if min(self.samples, self.microbatch_size, self.microbatches_per_update) < 1:
            raise OurFault(f"a data order needs positive sizes, not {self}")

    @property
    def batch_samples(self) -> int:
        """Samples in one batch."""
        return self.microbatch_size * self.microbatches_per_update

    def sample_at(self, position: int) -> int:
        """Index of the sample at this position of the stream, 0-based."""
        return next(self._samples(position, 1))

    def microbatch(self, batch: int, k: int) -> list[int]:
        """Indices of the samples in micro-batch `k` of global batch `batch`, in order."""
        if batch < 0 or not 0 <= k < self.microbatches_per_update:
            raise OurFault(f"no micro-batch {k} of {self.microbatches_per_update} in batch {batch}")
        first = (batch * self.microbatches_per_update + k) * self.microbatch_size
        return list(self._samples(first, self.microbatch_size))

    def batches_in(self, passes: int) -> int:
        """Batches after which every sample has been trained at least `passes` times."""
        return -(-passes * self.samples // self.batch_samples)

    def _samples(self, first: int, count: int) -> Iterator[int]:
        if first < 0:
            raise OurFault(f"the stream starts at 0, not at {first}")
        rows = math.isqrt(self.samples - 1) + 1
        columns = -(-self.samples // rows)
        for position in range(first, first + count):
            pass_number, place = divmod(position, self.samples)
            keys = _round_keys(self.seed & _MASK, pass_number)
            while True:
                row, column = divmod(place, columns)
                for r in range(0, _FEISTEL_ROUNDS, 2):
                    row = (row + _mix(column ^ keys[r])) % rows
                    column = (column + _mix(row ^ keys[r + 1])) % columns
                place = row * columns + column
                if place < self.samples:
                    break
            yield place


@dataclass(frozen=True, slots=True)
class Shares:
    """Which cluster trains which batches in a generation that starts at `batches_done`.

    Round r gives the batches from batches_done + r·Σκ on to the clusters in order, κ_c to cluster c. The last
    round is cut where `total_batches` ends: some clusters get fewer, perhaps none, and still average.
    """

    batches_done: int
    total_batches: int
    updates_per_round: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.updates_per_round or min(self.updates_per_round) < 1:
            raise OurFault(f"every cluster needs updates in a round, not {self.updates_per_round}")
        if not 0 <= self.batches_done <= self.total_batches:
            raise OurFault(f"{self.batches_done} batches done of {self.total_batches}")

    @property
    def rounds(self) -> int:
        """Rounds until the job is done."""
        return -(-(self.total_batches - self.batches_done) // sum(self.updates_per_round))

    def batch(self, cluster: int, local_update: int) -> int:
        """Global batch of this cluster's update, both 0-based."""
        if not self.has(cluster, local_update):
            raise OurFault(f"cluster {cluster} has no update {local_update}")
        r, j = divmod(local_update, self.updates_per_round[cluster])
        return self._first(cluster, r) + j

    def has(self, cluster: int, local_update: int) -> bool:
        """Whether this cluster exists and has this update."""
        return 0 <= cluster < len(self.updates_per_round) and 0 <= local_update < self.local_updates(cluster)

    def local_updates(self, cluster: int) -> int:
        """Updates of this cluster in the whole generation."""
        if not self.rounds:
            return 0
        last = self.rounds - 1
        return last * self.updates_per_round[cluster] + self.updates_in_round(cluster, last)

    def updates_in_round(self, cluster: int, r: int) -> int:
        """Updates of this cluster in round `r`: in ratio its weight in that round's average."""
        if not 0 <= r < self.rounds:
            raise OurFault(f"no round {r} of {self.rounds}")
        return max(0, min(self.updates_per_round[cluster], self.total_batches - self._first(cluster, r)))

    def weights(self, r: int) -> tuple[int, ...]:
        """Updates of every cluster in round `r`: what their parameters count for in the mean."""
        return tuple(self.updates_in_round(c, r) for c in range(len(self.updates_per_round)))

    def weights_over(self, first: int, last: int) -> tuple[int, ...]:
        """The same for a mean that stands for the rounds from `first` to `last`."""
        of_rounds = [self.weights(r) for r in range(first, last + 1)]
        return tuple(map(sum, zip(*of_rounds, strict=True)))

    def batches_after(self, r: int) -> int:
        """Batches of the job that are done after round `r`; `batches_done` for r = -1."""
        return min(self.total_batches, self.batches_done + (r + 1) * sum(self.updates_per_round))

    def _first(self, cluster: int, r: int) -> int:
        return self.batches_done + r * sum(self.updates_per_round) + sum(self.updates_per_round[:cluster])


class Sample(NamedTuple):
    """One micro-batch of the data order: its global batch, its samples, the seed of its random nodes."""

    batch: int
    indices: list[int]
    seed: int


def sample_of(order: DataOrder, shares: Shares, cluster: int, i: int) -> Sample:
    """What this cluster's local micro-batch `i` is made of."""
    update, k = divmod(i, order.microbatches_per_update)
    batch = shares.batch(cluster, update)
    seed = (order.seed * SEED_STRIDE + batch * order.microbatches_per_update + k) % 2**63
    return Sample(batch, order.microbatch(batch, k), seed)


class Breach(str, Enum):
    """What can be wrong with a history of training."""

    LOST = "lost"
    APPLIED_TWICE = "applied twice"
    WRONG_BATCH = "wrong batch"
    CLAIMED_TWICE = "claimed twice"
    BROKEN_LINEAGE = "broken lineage"


@dataclass(frozen=True, slots=True)
class Violation:
    breach: Breach
    text: str

    def __str__(self) -> str:
        return f"{self.breach.value}: {self.text}"


@dataclass(slots=True)
class _Formation:
    shares: Shares
    claims: dict[tuple[int, int], int] = field(default_factory=dict)
    rounds: int = 0
    """Committed and surviving."""
    closed: bool = False

    @property
    def batches_done(self) -> int:
        return self.shares.batches_after(self.rounds - 1)


class Ledger:
    """What was really trained, and the proof that every batch counts exactly once.

    It follows one parameter range: feed it, of every cluster, the stage that holds the range. Updates count
    once their round is committed; a generation that opens cuts off all that its starting point lacks.
    """

    def __init__(self) -> None:
        self._formations: dict[Generation, _Formation] = {}
        self._violations: list[Violation] = []

    @property
    def batches_done(self) -> int:
        """Batches in the surviving state."""
        return max((f.batches_done for f in self._formations.values() if f.rounds), default=0)

    def open(self, generation: Generation, shares: Shares) -> None:
        """A generation takes up the state with `shares.batches_done` batches; all after that is void."""
        if any(generation[:2] <= older[:2] for older in self._formations):
            self._breach(Breach.BROKEN_LINEAGE, f"generation {generation} does not follow the newest one")
            return
        for older, formation in self._formations.items():
            self.abandon(older)
            while formation.rounds and formation.batches_done > shares.batches_done:
                formation.rounds -= 1
        if self.batches_done != shares.batches_done:
            text = f"generation {generation} takes up {shares.batches_done} batches, where no round ended"
            self._breach(Breach.BROKEN_LINEAGE, text)
        self._formations[generation] = _Formation(shares)

    def claim(self, generation: Generation, cluster: int, local_update: int, batch: int) -> None:
        """A cluster applied a batch; it counts once the round is committed."""
        formation = self._formations.get(generation)
        claim = f"generation {generation}, cluster {cluster}, update {local_update}"
        if formation is None:
            self._breach(Breach.BROKEN_LINEAGE, f"{claim}: the generation was never opened")
        elif not formation.shares.has(cluster, local_update):
            self._breach(Breach.WRONG_BATCH, f"{claim}: batch {batch}, where no update is due")
        elif (cluster, local_update) in formation.claims:
            self._breach(Breach.CLAIMED_TWICE, f"{claim}: batch {batch}")
        else:
            formation.claims[cluster, local_update] = batch

    def commit(self, generation: Generation, r: int) -> None:
        """Round `r` is averaged and saved."""
        formation = self._formations.get(generation)
        if formation is None or formation.closed or r != formation.rounds or r >= formation.shares.rounds:
            self._breach(Breach.BROKEN_LINEAGE, f"generation {generation} commits round {r} out of turn")
        else:
            formation.rounds += 1

    def abandon(self, generation: Generation) -> None:
        """The generation is broken: what it has not committed never counts."""
        if generation in self._formations:
            self._formations[generation].closed = True

    def violations(self) -> list[Violation]:
        """Everything that contradicts "each batch below `batches_done` is applied exactly once"."""
        found = list(self._violations)
        applied: Counter[int] = Counter()
        for generation, formation in self._formations.items():
            for (cluster, update), batch in sorted(formation.claims.items()):
                if update // formation.shares.updates_per_round[cluster] >= formation.rounds:
                    continue
                applied[batch] += 1
                due = formation.shares.batch(cluster, update)
                if batch != due:
                    text = f"generation {generation}, cluster {cluster}, update {update}: {batch}, not {due}"
                    found.append(Violation(Breach.WRONG_BATCH, text))
        for batch in sorted(applied.keys() | range(self.batches_done)):
            times = applied[batch]
            if times == 0:
                found.append(Violation(Breach.LOST, f"batch {batch} is in no update that counts"))
            elif times > 1:
                found.append(
                    Violation(Breach.APPLIED_TWICE, f"batch {batch} is in {times} updates that count")
                )
        return found

    def _breach(self, breach: Breach, text: str) -> None:
        self._violations.append(Violation(breach, text))
