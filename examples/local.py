"""What scripts with a swarm of their own on this computer share: waiting for its peers, showing a job."""

from __future__ import annotations

import signal
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

FIND_EACH_OTHER_S = 60.0


def take_interrupts() -> None:
    """Let Ctrl+C and SIGTERM raise KeyboardInterrupt.

    Said explicitly, since a background job of a shell starts with Ctrl+C ignored.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


def wait_for_peers(connection: Any, count: int, folder: Path, console: Console) -> None:
    """Until so many lending peers have measured themselves and said so.

    Raises:
        TimeoutError: they did not within a minute; their logs are in the folder.
    """
    deadline_s = time.monotonic() + FIND_EACH_OTHER_S
    with console.status("the peers find each other and measure what they can do …"):
        while sum(1 for peer in connection.peers() if peer["memory_bytes"]) < count:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"the peers did not find each other; see the logs in {folder}")
            time.sleep(0.3)


def follow(job: Any, limit_s: float, console: Console) -> tuple[Any, float]:
    """Show the job until it is over: (progress at the end of training, seconds of training).

    The status of a job that is over no longer names its stages; theirs are those of the last look.

    Raises:
        JobError: it failed, or took longer than `limit_s`.
    """
    from ravnest_p2p.cli.live import line, render
    from ravnest_p2p.core.errors import JobError

    begin_s, deadline_s = None, time.monotonic() + limit_s
    last = None
    live = Live(console=console, refresh_per_second=4) if console.is_terminal else nullcontext()
    with live:
        for progress in job.follow():
            now_s = time.monotonic()
            if begin_s is None and progress.phase.value == "running":
                begin_s = now_s
            if console.is_terminal:
                live.update(render(progress))
            else:
                console.print(line(progress), highlight=False)
            if progress.clusters and progress.clusters[0].stages[0].version:
                last = _fuller(progress, last)
            if progress.over:
                break
            if now_s > deadline_s:
                raise JobError(f"the job took longer than {limit_s:.0f} s: {progress.reason}")
    if progress.phase.value != "done" or last is None or begin_s is None:
        raise JobError(f"the job ended as {progress.phase.value}: {progress.reason}")
    kept = {"samples": progress.samples, "losses": progress.losses or last.losses}
    return last.model_copy(update=kept), time.monotonic() - begin_s


def _fuller(progress: Any, last: Any) -> Any:
    """The newer progress, unless stages have left it already."""
    busy = all(stage.version for cluster in progress.clusters for stage in cluster.stages)
    return progress if busy or last is None else last
