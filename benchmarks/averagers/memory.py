"""What a round takes of memory beside a member's own parameters: resident size, looked at from outside."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import psutil

from benchmarks.averagers.members import Members

LOOK_S = 0.003
END_S = 0.02
"""Before a member says that it is through, after which it looks at what came out."""


def extra_bytes(members: Members) -> list[int]:
    """Of each member: most that its resident size grew by in its first round, in which all memory is new."""
    processes = [psutil.Process(pid) for pid in members.pids]
    seen: list[tuple[float, list[int]]] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            seen.append((time.monotonic(), _resident(processes)))
            time.sleep(LOOK_S)

    members.fill(0)
    before, looking = _resident(processes), threading.Thread(target=look)
    looking.start()
    begun_s = time.monotonic()
    try:
        found = members.go(0)
    finally:
        over.set()
        looking.join()
    ends_s = [begun_s + one["seconds"] - END_S for one in found]
    return [
        max(sizes[n] for at_s, sizes in seen if at_s <= end_s) - before[n] for n, end_s in enumerate(ends_s)
    ]


def _resident(processes: Sequence[psutil.Process]) -> list[int]:
    return [process.memory_info().rss for process in processes]
