"""The planner's search, compiled before this peer has to lead.

Problem: the first search on a computer compiles for half a minute, longer than a leader's term, and twelve
daemons of one computer would compile the same at once. Solution: a child of low priority compiles while
nobody waits, one at a time, and keeps the result on disk; until then plans are made by simple rules. Only a
swarm of more peers than every grouping can be tried for needs the search.

`python -m ravnest_p2p.daemon.warmup` is that child.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import sys
from pathlib import Path

from ravnest_p2p.core.planning.clusters import EVERY_GROUPING_UP_TO_PEERS
from ravnest_p2p.daemon.environment import thread_environment

log = logging.getLogger(__name__)

LOWEST_PRIORITY = 19
PEERS = EVERY_GROUPING_UP_TO_PEERS + 6
"""Of the problem that is solved."""


class Warmup:
    """Of one peer.

    Attributes:
        ready: whether the search can be used at once.
    """

    def __init__(self) -> None:
        self.ready = False
        self._running: asyncio.Task[None] | None = None

    def expect(self, lending: int) -> None:
        """So many peers lend: begin, where their plans will need the search."""
        if self._running is None and lending > EVERY_GROUPING_UP_TO_PEERS:
            self._running = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop what is under way."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "ravnest_p2p.daemon.warmup",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=thread_environment(1),
        )
        try:
            _, errors = await process.communicate()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise
        self.ready = process.returncode == 0
        if self.ready:
            log.info("the planner's search is ready")
        else:
            last = errors.decode(errors="replace").strip()[-300:]
            log.warning("the planner's search does not compile here, plans follow simple rules: %s", last)


def main() -> None:
    """Compile, or find it compiled."""
    os.nice(LOWEST_PRIORITY)
    import numba

    from ravnest_p2p.core.planning.instance import parse_problem
    from ravnest_p2p.core.planning.search.effort import QUICK
    from ravnest_p2p.core.planning.search.solve import solve
    from ravnest_p2p.testing.planning_problems import instance

    folder = Path(numba.config.CACHE_DIR)  # type: ignore[attr-defined]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        solve(parse_problem(instance("gpt350m", PEERS, 0, layers=12)), budget=QUICK)


if __name__ == "__main__":
    main()
