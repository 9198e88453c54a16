"""A bridge from synchronous and asyncio callers into one trio thread.

Problem: py-libp2p lives in trio; users live in scripts, notebooks and asyncio programs, press Ctrl-C, and
cancel tasks. Solution: one daemon thread runs one trio loop; each call becomes a trio task with its
own cancel scope, and a `concurrent.futures.Future` carries its outcome back. A caller that gives up
(KeyboardInterrupt, a cancelled asyncio task) cancels its trio task, and nothing else.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as WaitTimeoutError
from typing import Any, TypeVar

import trio

from ravnest_p2p.core.errors import OurFault

T = TypeVar("T")
_POLL_S = 0.5
_JOIN_S = 10.0


class Portal:
    """Runs `main(task_status)` in a trio thread, and calls beside it until `close`.

    Args:
        main: started first; lives as long as the portal and is cancelled by `close`. What it passes to
            `task_status.started` is `self.value`.

    Raises:
        BaseException: whatever `main` raised before it was started.
    """

    value: Any

    def __init__(self, main: Callable[..., Awaitable[None]]) -> None:
        self._main = main
        self._ready: Future[Any] = Future()
        self._closed = False
        self._pending: set[Future[Any]] = set()
        self._thread = threading.Thread(target=self._run, name="ravnest-client", daemon=True)
        self._thread.start()
        self.value = _wait(self._ready)

    def call(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Run `await function(*args)` in the trio thread and wait for it here."""
        future: Future[T] = Future()
        try:  # Ctrl-C may come at any point from here on
            self._spawn(future, function, *args)
            return _wait(future)
        except BaseException:
            future.cancel()
            raise

    async def acall(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Run `await function(*args)` in the trio thread and await it in this asyncio loop."""
        future: Future[T] = Future()
        self._spawn(future, function, *args)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Cancel every call and `main`, and end the thread. May be called twice, and from any thread."""
        if not self._closed:
            self._closed = True
            try:
                self._token.run_sync_soon(self._nursery.cancel_scope.cancel)
            except trio.RunFinishedError:
                pass
        if threading.current_thread() is not self._thread:
            self._thread.join(_JOIN_S)

    def _spawn(self, future: Future[T], function: Callable[..., Awaitable[T]], *args: Any) -> None:
        if self._closed:
            raise OurFault("this swarm connection is closed")
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        try:
            self._token.run_sync_soon(self._start, future, function, args)
        except trio.RunFinishedError:
            raise OurFault("this swarm connection is closed") from None

    def _start(
        self, future: Future[Any], function: Callable[..., Awaitable[Any]], args: tuple[Any, ...]
    ) -> None:
        try:
            self._nursery.start_soon(self._task, future, function, args)
        except RuntimeError:
            _settle(future, error=OurFault("this swarm connection is closed"))

    async def _task(
        self, future: Future[Any], function: Callable[..., Awaitable[Any]], args: tuple[Any, ...]
    ) -> None:
        scope = trio.CancelScope()
        token = self._token

        def give_up(done: Future[Any]) -> None:
            if done.cancelled():
                try:
                    token.run_sync_soon(scope.cancel)
                except trio.RunFinishedError:
                    pass

        future.add_done_callback(give_up)
        try:
            with scope:
                value = await function(*args)
                _settle(future, value)
        except Exception as error:
            _settle(future, error=error)
        except BaseException:
            _settle(future, error=OurFault("this swarm connection was closed during the call"))
            raise

    def _run(self) -> None:
        try:
            trio.run(self._loop)
        except BaseException as error:
            _settle(self._ready, error=_alone(error))
        finally:
            self._closed = True
            for future in tuple(self._pending):
                _settle(future, error=OurFault("this swarm connection is closed"))

    async def _loop(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as self._nursery:
            value = await self._nursery.start(self._main)
            _settle(self._ready, value)


def _alone(error: BaseException) -> BaseException:
    """The one error inside the groups that trio's nurseries make of it."""
    inside: Sequence[BaseException] = getattr(error, "exceptions", ())
    return _alone(inside[0]) if len(inside) == 1 else error


def _settle(future: Future[Any], value: Any = None, error: BaseException | None = None) -> None:
    """Set the outcome, unless the future has one or was cancelled."""
    try:
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)
    except Exception:
        if not future.done():
            raise


def _wait(future: Future[T]) -> T:
    """The future's result, waiting in short steps so that Ctrl-C gets through on every platform."""
    while True:
        try:
            return future.result(timeout=_POLL_S)
        except WaitTimeoutError:
            if future.done():
                return future.result()
