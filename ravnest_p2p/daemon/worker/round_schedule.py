"""Which rounds of a generation a stage averages, and the numbers from which that follows.

Where a job has a fixed κ, all of them. Where κ is found while training, `core.cadence` says so from what
rounds before showed, which all stages of all clusters learn from each other (`core.pipeline.round_numbers`);
each decides for itself, and all decide alike.
"""

from __future__ import annotations

import logging
import time
from typing import NamedTuple

from ravnest_p2p.core.averaging import ADAPTIVE
from ravnest_p2p.core.cadence import Cadence, Due
from ravnest_p2p.core.errors import ChunkMismatchError
from ravnest_p2p.core.kappa import Kappa, KappaSpec, Seen, apart
from ravnest_p2p.core.ledger import Shares
from ravnest_p2p.core.optimizers import learning_rate
from ravnest_p2p.core.pipeline.round_numbers import UNIT, Numbers, RoundNumbers
from ravnest_p2p.core.rings.segments import normalised
from ravnest_p2p.daemon.messages import StartRun

log = logging.getLogger(__name__)


class RoundSchedule:
    """Asked in the compute thread, of each round in order.

    Attributes:
        numbers: what stages tell each other of rounds.
    """

    def __init__(self, start: StartRun, shares: Shares) -> None:
        cluster = start.plan.clusters[start.cluster]
        self.numbers = RoundNumbers(start.stage, len(cluster.stages))
        self._shares = shares
        self._cadence = _cadence(start, shares.rounds) if start.spec.kappa == ADAPTIVE else None

    @property
    def kappa(self) -> int:
        """That was decided last; 0 where it is fixed."""
        return self._cadence.newest.kappa if self._cadence is not None else 0

    @property
    def why(self) -> str:
        """What led to it, in words."""
        return self._cadence.newest.why if self._cadence is not None else ""

    def due(self, number: int) -> Due | None:
        """The round if it is averaged; None if it is skipped.

        Raises:
            ChunkMismatchError: the other stages have not told what a round before showed.
        """
        if self._cadence is None:
            return Due(number, number)
        while (of := self._cadence.undecided(number)) is not None:
            numbers = self.numbers.of(of)
            if numbers is None:
                raise ChunkMismatchError(f"the stages beside this one never told what round {of} showed")
            log.info("%s", self._cadence.ended(self._seen(of, numbers)).why)
        return self._cadence.due(number)

    def _seen(self, number: int, numbers: Numbers) -> Seen:
        assert self._cadence is not None
        due = self._cadence.due(number)
        assert due is not None, "it was averaged"
        shares = normalised(self._shares.weights_over(due.first, due.number))
        spread, norm = numbers.spread / UNIT, numbers.norm / UNIT
        return Seen(apart(spread, 0.0, norm, shares), numbers.round_s, numbers.update_s)


class Pace(NamedTuple):
    """How long training took since it was asked last, and each update of it; 0 where none was made."""

    seconds: float
    update_s: float


class UpdatePace:
    """What local updates take, without the time in which training stands for a mean.

    Args:
        version: updates in the weights now.
    """

    def __init__(self, version: int) -> None:
        self._begun_s, self._version = time.monotonic(), version

    def stood(self, seconds: float) -> None:
        """Training stood for so long."""
        self._begun_s += seconds

    def since(self, version: int) -> Pace:
        """Up to an update that is made now."""
        now_s = time.monotonic()
        seconds, updates = max(0.0, now_s - self._begun_s), version - self._version
        self._begun_s, self._version = now_s, version
        return Pace(seconds, seconds / updates if updates > 0 else 0.0)


def _cadence(start: StartRun, rounds: int) -> Cadence:
    least = start.spec.updates_per_round
    spec = KappaSpec(least=least, most=max(least, KappaSpec().most), step=least)
    optimizer, version = start.spec.optimizer, start.plan.version
    return Cadence(Kappa(spec, lambda update: learning_rate(optimizer, version + update)), least, rounds)
