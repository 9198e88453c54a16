"""Which gateway is asked: order, back-off, patience, and which errors end a call."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import pytest
import trio
import trio.testing

from ravnest_p2p.client.router import Patience, Router
from ravnest_p2p.client.session import Session
from ravnest_p2p.core.errors import BlobError, BusyError, JobError, PeerUnreachableError
from ravnest_p2p.network.gateway import Peers, Request

IDS = (
    "12D3KooWFNrdsdUdZRNVJSTjdWEYpruXAXhEeZG3MXnZxjVNtXSA",
    "12D3KooWET3XanAPYv8qj8pt9CEA8oyCZnC99KyYJNZaz1ScBGs2",
    "12D3KooWHmiVFsP8n7WFS681zqPHGNmbfEM7E37iQ3dhk8QvcQzK",
)
A, B, C = (f"/ip4/127.0.0.1/tcp/{1000 + i}/p2p/{peer}" for i, peer in enumerate(IDS))


class FakeStream:
    def __init__(self, address: str) -> None:
        self.address = address
        self.open = True

    async def close(self) -> None:
        self.open = False


class FakeTransport:
    """Addresses that are up give streams; the others do not."""

    def __init__(self, *up: str) -> None:
        self.up = set(up)
        self.dials: list[tuple[float, str]] = []

    async def open(self, address: str, protocol: str, timeout_s: float) -> FakeStream:
        self.dials.append((trio.current_time(), address))
        if address not in self.up:
            raise PeerUnreachableError(f"{address} is down")
        return FakeStream(address)

    async def forget(self, address: str) -> None:
        return


class FakeSession(Session):
    """Knows its address, and answers `peers` from `book`."""

    book: ClassVar[dict[str, list[str]]] = {}

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.address = stream.address

    async def request(self, request: Request, timeout_s: float = 0.0) -> dict[str, Any]:
        if isinstance(request, Peers):
            return {
                "peers": [{"addresses": self.book.get(self.address, [])}, "nonsense", {"addresses": [7, "x"]}]
            }
        return {"addresses": [self.address]}


@pytest.fixture(autouse=True)
def _fake_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ravnest_p2p.client.router.Session", FakeSession)
    monkeypatch.setattr(FakeSession, "book", {})


def run(function: Any) -> Any:
    return trio.run(function, clock=trio.testing.MockClock(autojump_threshold=0))


async def where(session: Any) -> str:
    return session.address


def test_the_gateway_that_worked_is_asked_again_on_the_same_stream() -> None:
    async def main() -> None:
        transport = FakeTransport(B)
        router = Router(transport, [A, B])  # type: ignore[arg-type]
        assert [await router.call(where, Patience(10)) for _ in range(3)] == [B, B, B]
        assert [address for _, address in transport.dials] == [A, B]

    run(main)


def test_addresses_are_learnt_from_those_that_answer() -> None:
    FakeSession.book = {A: [B, B, "/ip4/1.2.3.4/udp/1", C]}

    async def main() -> None:
        transport = FakeTransport(A, C)
        router = Router(transport, [A])  # type: ignore[arg-type]
        assert await router.call(where, Patience(10)) == A
        transport.up.remove(A)

        async def broken_on_a(session: Any) -> str:
            if session.address == A:
                raise PeerUnreachableError("cut")
            return str(session.address)

        assert await router.call(broken_on_a, Patience(10)) == C

    run(main)


def test_an_outage_is_waited_out_with_growing_pauses() -> None:
    async def main() -> None:
        transport = FakeTransport()
        router = Router(transport, [A])  # type: ignore[arg-type]
        async with trio.open_nursery() as nursery:

            async def restart() -> None:
                await trio.sleep(5)
                transport.up.add(A)

            nursery.start_soon(restart)
            assert await router.call(where, Patience(30)) == A
        times = [time for time, _ in transport.dials]
        pauses = [b - a for a, b in pairwise(times)]
        assert pauses == sorted(pauses)
        assert 5 <= trio.current_time() < 10

    run(main)


def test_patience_ends_and_names_the_last_one_tried() -> None:
    async def main() -> None:
        router = Router(FakeTransport(), [A, B])  # type: ignore[arg-type]
        start = trio.current_time()
        with pytest.raises(PeerUnreachableError, match="is down"):
            await router.call(where, Patience(12))
        assert trio.current_time() - start <= 12

    run(main)


def test_a_users_fault_ends_the_call_at_once() -> None:
    asked: list[str] = []

    async def work(session: Any) -> None:
        asked.append(session.address)
        raise JobError("unknown")

    async def main() -> None:
        router = Router(FakeTransport(A, B), [A, B])  # type: ignore[arg-type]
        with pytest.raises(JobError):
            await router.call(work, Patience(10))

    run(main)
    assert asked == [A]


def test_a_remote_fault_is_final_when_everyone_was_tried() -> None:
    asked: list[str] = []

    async def work(session: Any) -> None:
        asked.append(session.address)
        raise BlobError("not here")

    async def main() -> None:
        router = Router(FakeTransport(A, B), [A, C, B])  # type: ignore[arg-type]
        with pytest.raises(BlobError):
            await router.call(work, Patience(1000))
        assert trio.current_time() < 5

    run(main)
    assert asked == [A, B]


def test_another_gateway_may_have_what_one_lacks() -> None:
    async def work(session: Any) -> str:
        if session.address == A:
            raise BlobError("not here")
        return str(session.address)

    async def main() -> None:
        router = Router(FakeTransport(A, B), [A, B])  # type: ignore[arg-type]
        assert await router.call(work, Patience(10)) == B

    run(main)


def test_a_busy_gateway_is_asked_again_until_it_has_time() -> None:
    asked: list[float] = []

    async def work(session: Any) -> str:
        asked.append(trio.current_time())
        if len(asked) < 4:
            raise BusyError("later")
        return str(session.address)

    async def main() -> None:
        router = Router(FakeTransport(A), [A])  # type: ignore[arg-type]
        assert await router.call(work, Patience(30)) == A
        with pytest.raises(BusyError):
            await router.call(always_busy, Patience(3))

    async def always_busy(session: Any) -> None:
        raise BusyError("later")

    run(main)


def test_progress_renews_patience() -> None:
    async def main() -> None:
        patience = Patience(5)
        await trio.sleep(4)
        patience.renew()
        await trio.sleep(4)
        assert patience.left_s() == pytest.approx(1)

    run(main)


def test_a_stream_that_went_stale_is_replaced_without_blame() -> None:
    async def main() -> None:
        transport = FakeTransport(A)
        router = Router(transport, [A])  # type: ignore[arg-type]
        await router.call(where, Patience(5))
        stale: list[Any] = []

        async def work(session: Any) -> str:
            if not stale:
                stale.append(session)
                raise PeerUnreachableError("closed while idle")
            return str(session.address)

        start = trio.current_time()
        assert await router.call(work, Patience(5)) == A
        assert trio.current_time() == start
        assert len(transport.dials) == 2

    run(main)
