"""Steps that the synchronous and the asyncio face of the SDK have in common."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import trio
from torch import Tensor

from ravnest_p2p.client.operations import Operations
from ravnest_p2p.client.prepare import Prepared, Say, prepare
from ravnest_p2p.client.request import JobRequest
from ravnest_p2p.client.result import missing_names, state_dict
from ravnest_p2p.core.errors import JobError
from ravnest_p2p.core.types import JobId
from ravnest_p2p.model.program import Program
from ravnest_p2p.network import gateway


def nothing(line: str) -> None:
    """Says nothing."""


def percent(say: Say, total_bytes: int) -> Callable[[int], None]:
    """Says how much of `total_bytes` is uploaded, at each tenth; call it with the bytes so far."""
    said = -1

    def advance(done_bytes: int) -> None:
        nonlocal said
        tenth = 10 * done_bytes // max(1, total_bytes)
        if tenth > said:
            said = tenth
            say(f"uploading: {10 * tenth} % of {total_bytes / 1e6:.1f} MB")

    return advance


def megabytes(say: Say) -> Callable[[int], None]:
    """Says how much is downloaded, at each 10 MB; call it with the bytes that came."""
    got = 0

    def advance(count: int) -> None:
        nonlocal got
        before, got = got, got + count
        if before // 10_000_000 != got // 10_000_000 or not before:
            say(f"downloading: {got / 1e6:.0f} MB")

    return advance


@contextmanager
def ready(request: JobRequest, say: Say) -> Iterator[tuple[Prepared, dict[str, Tensor]]]:
    """The prepared job while its blobs exist, and the part of the model's state that no peer will see."""
    with tempfile.TemporaryDirectory(prefix="ravnest-") as folder:
        prepared, program = prepare(request, Path(folder), say)
        yield prepared, _untrained(request, program)


async def fetch(operations: Operations, job: JobId, timeout_s: float, say: Say) -> dict[str, Tensor]:
    """Wait for a job and bring its state_dict home. A trio function."""
    await operations.finish(job, timeout_s)
    with tempfile.TemporaryDirectory(prefix="ravnest-") as name:
        folder, advance = Path(name), megabytes(say)
        pieces = await operations.pieces(job, folder, advance)
        spec = await operations.spec(job, folder)
        program = await operations.program(spec, folder)
        weights = []
        if await trio.to_thread.run_sync(missing_names, program, pieces):
            weights = [
                await operations.download(blob, folder, advance)
                for blob in spec.weights_of(0, len(spec.layers))
            ]
        return await trio.to_thread.run_sync(state_dict, program, pieces, weights)


def logs_request(job: JobId | None, after: int, limit: int) -> gateway.Logs:
    """The request, with numbers brought within what a gateway accepts."""
    return gateway.Logs(job=job, after=max(0, after), limit=min(max(1, limit), gateway.MAX_LOG_LINES))


def is_whole_id(text: str) -> bool:
    """Whether the text is a job's whole id."""
    return len(text) == 64 and set(text) <= set("0123456789abcdef")


def only_match(start: str, jobs: list[str]) -> str:
    """The one job whose id begins with `start`.

    Raises:
        JobError: none does, or several do.
    """
    matches = sorted(job for job in jobs if start and job.startswith(start))
    if len(matches) != 1:
        found = ", ".join(job[:12] for job in matches[:5])
        raise JobError(
            f"several jobs begin with {start!r}: {found}" if matches else f"no job begins with {start!r}"
        )
    return matches[0]


def _untrained(request: JobRequest, program: Program) -> dict[str, Tensor]:
    captured = {leaf.name for leaf in program.params + program.buffers}
    captured |= {name for group in program.tied for name in group}
    state = request.model.state_dict()
    return {
        name: value.detach().cpu().clone()
        for name, value in state.items()
        if name not in captured and isinstance(value, Tensor)
    }
