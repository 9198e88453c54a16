"""The bridge into the trio thread: outcomes, cancelling, Ctrl-C, closing."""

from __future__ import annotations

import _thread
import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from ravnest_p2p.client.portal import Portal
from ravnest_p2p.core.errors import ConfigError, OurFault

pytestmark = pytest.mark.timeout(20)


class Sleeper:
    """A call that never ends by itself."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.cancelled = threading.Event()

    async def __call__(self) -> None:
        self.began.set()
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            self.cancelled.set()
            raise


async def _main(task_status: Any) -> None:
    task_status.started("value")
    await trio.sleep_forever()


async def _add(a: int, b: int) -> int:
    await trio.lowlevel.checkpoint()
    return a + b


async def _fail() -> None:
    raise ConfigError("why")


@pytest.fixture
def portal() -> Iterator[Portal]:
    portal = Portal(_main)
    yield portal
    portal.close()


def test_values_and_errors_come_back(portal: Portal) -> None:
    assert portal.value == "value"
    assert portal.call(_add, 1, 2) == 3
    with pytest.raises(ConfigError, match="why"):
        portal.call(_fail)
    assert portal.call(_add, 3, 4) == 7


def test_ctrl_c_cancels_the_call_and_nothing_else(portal: Portal) -> None:
    sleeper = Sleeper()
    threading.Thread(target=lambda: (sleeper.began.wait(), _thread.interrupt_main())).start()
    with pytest.raises(KeyboardInterrupt):
        portal.call(sleeper)
    assert sleeper.cancelled.wait(5)
    assert portal.call(_add, 1, 2) == 3


def test_a_cancelled_asyncio_task_cancels_its_call(portal: Portal) -> None:
    sleeper = Sleeper()

    async def main() -> None:
        task = asyncio.create_task(portal.acall(sleeper))
        await asyncio.to_thread(sleeper.began.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await portal.acall(_add, 1, 2) == 3

    asyncio.run(main())
    assert sleeper.cancelled.wait(5)


def test_closing_ends_calls_and_refuses_new_ones(portal: Portal) -> None:
    sleeper, failed = Sleeper(), []

    def wait() -> None:
        try:
            portal.call(sleeper)
        except OurFault as error:
            failed.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    sleeper.began.wait(5)
    portal.close()
    thread.join(5)
    assert sleeper.cancelled.is_set()
    assert len(failed) == 1
    with pytest.raises(OurFault, match="closed"):
        portal.call(_add, 1, 2)


def test_a_main_that_fails_at_the_start_is_reported() -> None:
    async def broken(task_status: Any) -> None:
        raise ConfigError("no")

    with pytest.raises(ConfigError, match="no"):
        Portal(broken)


def test_a_main_that_dies_later_ends_the_calls() -> None:
    die = threading.Event()

    async def mortal(task_status: Any) -> None:
        task_status.started()
        await trio.to_thread.run_sync(die.wait, 5)
        raise ValueError("broken")

    portal, sleeper = Portal(mortal), Sleeper()
    threading.Thread(target=lambda: (sleeper.began.wait(), die.set())).start()
    with pytest.raises(OurFault):
        portal.call(sleeper)
    with pytest.raises(OurFault, match="closed"):
        portal.call(_add, 1, 2)
