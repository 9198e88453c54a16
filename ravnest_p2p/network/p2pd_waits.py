"""A bounded wait that obeys cancellation.

Problem: before Python 3.12 `asyncio.wait_for` swallows a cancellation that arrives in the moment when the
inner wait ends, so a supervisor that is being stopped lives on. Solution: the same promise on top of
`asyncio.wait`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def bounded(work: Awaitable[T], timeout_s: float) -> T:
    """The result of the work, which is cancelled when the time is over or the caller is cancelled.

    Raises:
        asyncio.TimeoutError: it took longer.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait((task,), timeout=timeout_s)
    finally:
        finished = task.done()
        task.cancel()
    if not finished:
        await asyncio.wait((task,), timeout=1.0)
        raise asyncio.TimeoutError
    return task.result()
