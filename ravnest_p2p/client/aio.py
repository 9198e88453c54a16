"""The asyncio face of the SDK; the same as the synchronous one, with `await`.

    async with rn.aio.connect("/ip4/192.0.2.1/tcp/4001/p2p/12D3Koo…") as swarm:
        job = await swarm.submit(model, data=(x, y))
        async for progress in job.follow():
            print(progress.loss)
        model.load_state_dict(await job.result())

What takes the processor for long (capturing the model) runs in a thread; cancelling a task ends its request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from ravnest_p2p.client import steps
from ravnest_p2p.client.operations import Operations
from ravnest_p2p.client.portal import Portal
from ravnest_p2p.client.prepare import Say
from ravnest_p2p.client.progress import Progress
from ravnest_p2p.client.request import JobRequest
from ravnest_p2p.client.steps import nothing
from ravnest_p2p.client.swarm import open_portal
from ravnest_p2p.client.timeline import JobTimeline
from ravnest_p2p.core.types import JobId, PeerId
from ravnest_p2p.model.package import Package
from ravnest_p2p.network import gateway


def connect(*addresses: str, timeout_s: float = 15.0) -> Connecting:
    """Enter a swarm: `async with connect(…) as swarm`, or `swarm = await connect(…)` and close it yourself.

    Args and errors as of `ravnest_p2p.connect`.
    """
    return Connecting(addresses, timeout_s)


class Connecting:
    """A connection about to be made."""

    def __init__(self, addresses: tuple[str, ...], timeout_s: float) -> None:
        self._addresses = addresses
        self._timeout_s = timeout_s
        self._swarm: Swarm | None = None

    def __await__(self) -> Any:
        return self._open().__await__()

    async def _open(self) -> Swarm:
        portal = await asyncio.to_thread(open_portal, self._addresses)
        try:
            operations: Operations = portal.value
            await portal.acall(operations.ask, gateway.Hello(), self._timeout_s)
        except BaseException:
            await asyncio.to_thread(portal.close)
            raise
        return Swarm(portal)

    async def __aenter__(self) -> Swarm:
        self._swarm = await self._open()
        return self._swarm

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._swarm is not None:
            await self._swarm.close()


class Swarm:
    """See `ravnest_p2p.client.swarm.Swarm`."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal
        self._operations: Operations = portal.value

    @property
    def peer_id(self) -> PeerId:
        """Who this requester is to the swarm."""
        return self._operations.peer_id

    async def hello(self) -> dict[str, Any]:
        """What the gateway says of itself: peer, version, swarm, addresses."""
        return await self._portal.acall(self._operations.ask, gateway.Hello())

    async def peers(self) -> list[dict[str, Any]]:
        """The peers that the gateway knows."""
        return await self._portal.acall(self._operations.entries, gateway.Peers(), "peers")

    async def epoch(self) -> dict[str, Any]:
        """Where the election stands: whose plan is obeyed, by whom, and who refused what."""
        return await self._portal.acall(self._operations.ask, gateway.Epoch())

    async def jobs(self) -> list[Progress]:
        """The jobs that the gateway knows."""
        entries = await self._portal.acall(self._operations.entries, gateway.Jobs(), "jobs")
        return [Progress.of(entry) for entry in entries]

    async def job(self, job: str) -> Job:
        """A job by its id, or by an unambiguous beginning of it."""
        if not steps.is_whole_id(job):
            job = steps.only_match(job, [known.job for known in await self.jobs()])
        return Job(self, JobId(job), {})

    async def logs(self, after: int = 0, limit: int = 200) -> list[dict[str, Any]]:
        """The gateway's own log lines with a number over `after`, the oldest first."""
        return await self._portal.acall(
            self._operations.entries, steps.logs_request(None, after, limit), "logs"
        )

    async def submit(
        self, model: nn.Module | Package, data: Any, *, say: Say = nothing, **settings: Any
    ) -> Job:
        """Have a model trained; returns when the swarm has taken the job in. Arguments as in `JobRequest`."""
        return await self.submit_request(JobRequest(model, data, **settings), say=say)

    async def submit_request(self, request: JobRequest, *, say: Say = nothing) -> Job:
        """As `submit`, with the request in one value."""
        preparing = steps.ready(request, say)
        prepared, untrained = await asyncio.to_thread(preparing.__enter__)
        try:
            advance = steps.percent(say, prepared.size_bytes)
            job = await self._portal.acall(self._operations.submit, prepared, advance)
        finally:
            preparing.__exit__(None, None, None)
        return Job(self, job, untrained, prepared.advice)

    async def close(self) -> None:
        """Leave. Jobs go on without us."""
        await asyncio.to_thread(self._portal.close)


class Job:
    """See `ravnest_p2p.client.swarm.Job`."""

    def __init__(
        self, swarm: Swarm, job: JobId, untrained: dict[str, Tensor], advice: tuple[str, ...] = ()
    ) -> None:
        self.id = job
        self._portal = swarm._portal
        self._operations = swarm._operations
        self._untrained = untrained
        self.advice = advice

    async def status(self) -> Progress:
        """How it goes now."""
        return await self._portal.acall(self._operations.status, self.id)

    async def follow(self) -> AsyncIterator[Progress]:
        """Each news of it, until it is done, cancelled or failed."""
        progress: Progress | None = None
        while progress is None or not progress.over:
            progress = await self._portal.acall(self._operations.news, self.id, progress)
            yield progress

    async def logs(self, after: int = 0, limit: int = 200) -> list[dict[str, Any]]:
        """Its log lines with a number over `after`, the oldest first."""
        request = steps.logs_request(self.id, after, limit)
        return await self._portal.acall(self._operations.entries, request, "logs")

    async def trace(self, last_s: float = 10.0) -> JobTimeline:
        """What each of its stages did in the last seconds that it trained, and when."""
        return await self._portal.acall(self._operations.trace, self.id, last_s)

    async def cancel(self) -> None:
        """Stop it; only its requester can."""
        await self._portal.acall(self._operations.cancel, self.id)

    async def result(self, timeout_s: float = 600.0, *, say: Say = nothing) -> dict[str, Tensor]:
        """The trained model's state_dict, after waiting at most `timeout_s` until it is done."""
        state = await self._portal.acall(steps.fetch, self._operations, self.id, timeout_s, say)
        return self._untrained | state

    def __repr__(self) -> str:
        return f"Job({self.id[:12]})"
