"""A stage's timeline, noted while it trains and kept in two files of bounded size.

Noting a span is one append, whichever thread does it; text is made and written with each report. The newest
spans lie in `timeline.txt`, those before in `timeline-before.txt`: when the first is full it takes the place
of the second. So what a worker did until half a second before its death can be read after it, and neither
memory nor disk grows with the length of a run.

Times are the monotonic clock's, moved by what the wall clock said when the run began.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from ravnest_p2p.core.pipeline.schedule import Op
from ravnest_p2p.core.pipeline.timeline import MICRO, Span
from ravnest_p2p.core.types import Generation

log = logging.getLogger(__name__)

NEWEST, BEFORE = "timeline.txt", "timeline-before.txt"
SPANS_IN_A_FILE = 25_000
_MOST_UNWRITTEN = 25_000
_MOST_QUEUED = 1024

ACTIVATION, GRADIENT = "a", "g"


def head_line(generation: Generation, cluster: int, stage: int) -> str:
    """First line of both files: whose spans these are."""
    return f"{generation} {cluster} {stage}\n"


class Timeline:
    """Args: folder: gets the two files; what an earlier run left there is removed."""

    def __init__(
        self,
        folder: Path,
        generation: Generation,
        cluster: int,
        stage: int,
        *,
        spans_in_a_file: int = SPANS_IN_A_FILE,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._folder = folder
        self._head = head_line(generation, cluster, stage)
        self._spans_in_a_file = spans_in_a_file
        self._clock = clock
        self._zero_us = round((time.time() - clock()) * MICRO)
        self._failed = False
        self._noted: deque[tuple[Op | str, float, float, int]] = deque(maxlen=_MOST_UNWRITTEN)
        self._queued: dict[str, float] = {}
        self._written = 0
        (folder / BEFORE).unlink(missing_ok=True)
        self._file = (folder / NEWEST).open("w")
        self._file.write(self._head)

    def ran(self, op: Op, seconds: float) -> None:
        """The operation has just ended, and took so long; called in the thread that did it."""
        self._noted.append((op, self._clock(), seconds, 0))

    def arrived(self, what: str, microbatch: int) -> None:
        """An activation or gradient is here."""
        self._noted.append((f"<{what}{microbatch}", self._clock(), 0.0, 0))

    def queued(self, what: str, microbatch: int) -> None:
        """An activation or gradient is about to be handed to the links."""
        if len(self._queued) < _MOST_QUEUED:
            self._queued[f">{what}{microbatch}"] = self._clock()

    def sent(self, what: str, microbatch: int, size_bytes: int) -> None:
        """It was handed over."""
        word, now_s = f">{what}{microbatch}", self._clock()
        self._noted.append((word, now_s, now_s - self._queued.pop(word, now_s), size_bytes))

    def averaged(self, number: int, seconds: float, size_bytes: int) -> None:
        """A round's mean has just been saved; so long after its begin, and so much was sent for it."""
        self._noted.append((f">r{number}", self._clock(), seconds, size_bytes))

    def flush(self) -> None:
        """Write what was noted; where that fails, a run goes on without a timeline."""
        if self._failed:
            self._noted.clear()
            return
        try:
            self._write()
        except OSError as error:
            self._failed = True
            log.warning("the timeline cannot be written, and is not any more: %s", error)

    def close(self) -> None:
        self.flush()
        with contextlib.suppress(OSError):
            self._file.close()

    def _write(self) -> None:
        lines = []
        while self._noted:
            lines.append(self._line(*self._noted.popleft()))
        while lines:
            room = self._spans_in_a_file - self._written
            self._file.writelines(lines[:room])
            self._written += len(lines[:room])
            lines = lines[room:]
            if self._written == self._spans_in_a_file:
                self._rotate()
        self._file.flush()

    def _rotate(self) -> None:
        self._file.close()
        (self._folder / NEWEST).replace(self._folder / BEFORE)
        self._file = (self._folder / NEWEST).open("w")
        self._file.write(self._head)
        self._written = 0

    def _line(self, word: Op | str, ended_s: float, seconds: float, size_bytes: int) -> str:
        # Both ends are rounded, not the duration: spans that follow one another never overlap by rounding.
        end_us = self._zero_us + round(ended_s * MICRO)
        start_us = self._zero_us + round((ended_s - seconds) * MICRO)
        return "{} {} {} {}\n".format(*Span(str(word), start_us, end_us - start_us, size_bytes))
