"""What a stage leaves out because it is not finite, and when that is too much.

Problem: one NaN in one sample, or one overflow, would make every weight NaN within an update; to end a long
run for it would be as wrong. Solution: the micro-batch counts nothing, at all stages alike, and an update
that is not finite is not made. Both are counted by index, and a run that leaves out too much has diverged or
trains broken data, and ends with the place and what to do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ravnest_p2p.core.errors import DivergedError
from ravnest_p2p.core.pipeline.notes import LeftOut

SKIP, STOP = "skip", "stop"
NONFINITE = (SKIP, STOP)

MAX_IN_A_ROW = 8
WINDOW = 200
MAX_IN_WINDOW = 10
"""5 % of the newest `WINDOW`."""

_ADVICE = (
    "lower the learning rate, give it a warm-up, or clip gradients (clip_norm); where samples are named, "
    "look at them"
)


class _Often:
    """Numbers, growing, of what was left out; says when they are too many."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._newest: deque[int] = deque()
        self._in_a_row = 0
        self.count = 0

    def add(self, number: int) -> str:
        """Why this is too much; empty where it is not."""
        follows = bool(self._newest) and self._newest[-1] == number - 1
        self._in_a_row = self._in_a_row + 1 if follows else 1
        self._newest.append(number)
        while self._newest[0] <= number - WINDOW:
            self._newest.popleft()
        self.count += 1
        if self._in_a_row > MAX_IN_A_ROW:
            return f"{self._in_a_row} {self._what} in a row were left out"
        if len(self._newest) > MAX_IN_WINDOW:
            return f"{len(self._newest)} of the last {WINDOW} {self._what} were left out"
        return ""


class Skipped:
    """What one stage left out of one run.

    Args:
        mode: "skip", or "stop": the first is too much.
    Attributes:
        named: what a micro-batch's number is called in texts; to be replaced by who knows more.
        why: the newest reason, with its place; empty before the first.
    """

    def __init__(self, mode: str = SKIP) -> None:
        self._mode = mode
        self._microbatches = _Often("micro-batches")
        self._updates = _Often("updates of a stage")
        self.named: Callable[[int], str] = "micro-batch {}".format
        self.why = ""

    @property
    def microbatches(self) -> int:
        return self._microbatches.count

    @property
    def updates(self) -> int:
        return self._updates.count

    def microbatch(self, i: int, found: LeftOut) -> None:
        """Micro-batch `i` counts nothing; called in the order of `i`.

        Raises:
            DivergedError: it is too much.
        """
        self._note(f"stage {found.stage}, {self.named(i)}: {found.why}", self._microbatches.add(i))

    def update(self, u: int, stage: int, why: str) -> None:
        """The stage does not make update `u`; called in the order of `u`.

        Raises:
            DivergedError: it is too much.
        """
        self._note(f"stage {stage}, update {u}: {why}", self._updates.add(u))

    def _note(self, why: str, too_much: str) -> None:
        self.why = why
        if self._mode == STOP:
            too_much = 'a value is not finite, and the job says nonfinite="stop"'
        if too_much:
            raise DivergedError(f"training diverged: {too_much}; {_ADVICE}. The newest: {why}")
