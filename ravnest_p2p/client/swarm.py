"""The synchronous face of the SDK: `connect`, `Swarm` and `Job`, for scripts and notebooks.

Every method may raise `PeerUnreachableError` when no gateway answered for a while, and whatever else the
peer answered, as a class of `ravnest_p2p.core.errors`. Ctrl-C ends a wait at once and leaves the
connection usable.
"""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from ravnest_p2p.client import home, steps
from ravnest_p2p.client.operations import Operations, run_operations
from ravnest_p2p.client.portal import Portal
from ravnest_p2p.client.prepare import Say
from ravnest_p2p.client.progress import Progress
from ravnest_p2p.client.request import JobRequest
from ravnest_p2p.client.steps import nothing
from ravnest_p2p.client.timeline import JobTimeline
from ravnest_p2p.client.transport import peer_info
from ravnest_p2p.core.types import JobId, PeerId
from ravnest_p2p.model.package import Package
from ravnest_p2p.network import gateway


def connect(*addresses: str, timeout_s: float = 15.0) -> Swarm:
    """Enter a swarm.

    Args:
        addresses: of any peers, /ip4/…/tcp/…/p2p/…; none stands for the ravnestd on this computer.
    Raises:
        ConfigError: a malformed address, or none given and no ravnestd here.
        PeerUnreachableError: none of the peers answered within `timeout_s`.
    """
    portal = open_portal(addresses)
    try:
        operations: Operations = portal.value
        portal.call(operations.ask, gateway.Hello(), timeout_s)
    except BaseException:
        portal.close()
        raise
    return Swarm(portal)


def open_portal(addresses: tuple[str, ...]) -> Portal:
    """A trio thread with the operations running in it."""
    entries = addresses or tuple(home.local_addresses())
    for address in entries:
        peer_info(address)
    return Portal(partial(run_operations, entries, home.requester_identity()))


class Swarm:
    """A connection to a swarm, made by `connect`. A context manager, or `close` it."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal
        self._operations: Operations = portal.value
        _open_portals.add(portal)

    @property
    def peer_id(self) -> PeerId:
        """Who this requester is to the swarm."""
        return self._operations.peer_id

    def hello(self) -> dict[str, Any]:
        """What the gateway says of itself: peer, version, swarm, addresses."""
        return self._portal.call(self._operations.ask, gateway.Hello())

    def peers(self) -> list[dict[str, Any]]:
        """The peers that the gateway knows."""
        return self._portal.call(self._operations.entries, gateway.Peers(), "peers")

    def epoch(self) -> dict[str, Any]:
        """Where the election stands: whose plan is obeyed, by whom, and who refused what."""
        return self._portal.call(self._operations.ask, gateway.Epoch())

    def jobs(self) -> list[Progress]:
        """The jobs that the gateway knows."""
        return [
            Progress.of(entry)
            for entry in self._portal.call(self._operations.entries, gateway.Jobs(), "jobs")
        ]

    def job(self, job: str) -> Job:
        """A job by its id, or by an unambiguous beginning of it.

        Raises:
            JobError: no such job, or several.
        """
        if not steps.is_whole_id(job):
            job = steps.only_match(job, [known.job for known in self.jobs()])
        return Job(self, JobId(job), {})

    def logs(self, after: int = 0, limit: int = 200) -> list[dict[str, Any]]:
        """The gateway's own log lines with a number over `after`, the oldest first."""
        return self._portal.call(self._operations.entries, steps.logs_request(None, after, limit), "logs")

    def submit(self, model: nn.Module | Package, data: Any, *, say: Say = nothing, **settings: Any) -> Job:
        """Have a model trained; returns when the swarm has taken the job in.

        Args:
            model, data, settings: as in `JobRequest`.
            say: called with a line for people at each step.
        Raises:
            ConfigError: data or settings that do not hold.
            CaptureError: the model cannot be captured faithfully.
        """
        return self.submit_request(JobRequest(model, data, **settings), say=say)

    def submit_request(self, request: JobRequest, *, say: Say = nothing) -> Job:
        """As `submit`, with the request in one value."""
        with steps.ready(request, say) as (prepared, untrained):
            job = self._portal.call(
                self._operations.submit, prepared, steps.percent(say, prepared.size_bytes)
            )
        return Job(self, job, untrained, prepared.advice)

    def close(self) -> None:
        """Leave. Jobs go on without us."""
        self._portal.close()

    def __enter__(self) -> Swarm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Job:
    """A job of a swarm. Made by `Swarm.submit` and `Swarm.job`.

    Attributes:
        id: hex SHA-256 of the job's manifest.
        advice: what may be better about the request that was submitted here, in words.
    """

    def __init__(
        self, swarm: Swarm, job: JobId, untrained: dict[str, Tensor], advice: tuple[str, ...] = ()
    ) -> None:
        self.id = job
        self._swarm = swarm
        self._untrained = untrained
        self.advice = advice

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        return self._swarm._portal.call(function, *args)

    def status(self) -> Progress:
        """How it goes now."""
        progress: Progress = self._call(self._swarm._operations.status, self.id)
        return progress

    def follow(self) -> Iterator[Progress]:
        """Each news of it, until it is done, cancelled or failed."""
        progress: Progress | None = None
        while progress is None or not progress.over:
            progress = self._call(self._swarm._operations.news, self.id, progress)
            yield progress

    def logs(self, after: int = 0, limit: int = 200) -> list[dict[str, Any]]:
        """Its log lines with a number over `after`, the oldest first."""
        request = steps.logs_request(self.id, after, limit)
        lines: list[dict[str, Any]] = self._call(self._swarm._operations.entries, request, "logs")
        return lines

    def trace(self, last_s: float = 10.0) -> JobTimeline:
        """What each of its stages did in the last seconds that it trained, and when.

        Raises:
            JobError: it is unknown, or has not started.
            PeerUnreachableError: no member answers.
        """
        timeline: JobTimeline = self._call(self._swarm._operations.trace, self.id, last_s)
        return timeline

    def cancel(self) -> None:
        """Stop it; only its requester can.

        Raises:
            JobError: it is unknown, or somebody else's.
        """
        self._call(self._swarm._operations.cancel, self.id)

    def result(self, timeout_s: float = 600.0, *, say: Say = nothing) -> dict[str, Tensor]:
        """The trained model's state_dict, after waiting at most `timeout_s` until it is done.

        Raises:
            JobError: it failed, was cancelled, or is not done in time.
        """
        state: dict[str, Tensor] = self._call(steps.fetch, self._swarm._operations, self.id, timeout_s, say)
        return self._untrained | state

    def __repr__(self) -> str:
        return f"Job({self.id[:12]})"


_open_portals: weakref.WeakSet[Portal] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for portal in tuple(_open_portals):
        portal.close()
