"""The newest log lines, kept in memory for `ravnest logs` and written as they come for the owner.

Each line is numbered by its time in microseconds, so that a reader who asks again gets only what is new,
and lines of several peers can be put in order. A line that speaks of a job holds the job's first
characters, by which the lines of one job are found.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Any

from ravnest_p2p.core.types import JobId

KEPT_LINES = 5000
JOB_CHARS = 8


class Logbook(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: deque[dict[str, Any]] = deque(maxlen=KEPT_LINES)
        self._last = 0

    def emit(self, record: logging.LogRecord) -> None:
        now_s = time.time()
        self._last = max(self._last + 1, int(now_s * 1e6))
        self._lines.append(
            {
                "seq": self._last,
                "time_s": now_s,
                "level": record.levelname,
                "text": record.getMessage(),
                "source": record.name.removeprefix("ravnest_p2p."),
            }
        )

    def lines(self, job: JobId | None, after: int, limit: int) -> list[dict[str, Any]]:
        """The oldest `limit` lines with numbers above `after`; only those of a job, if one is given."""
        wanted = [
            line
            for line in self._lines
            if line["seq"] > after and (job is None or job[:JOB_CHARS] in line["text"])
        ]
        return wanted[:limit]
