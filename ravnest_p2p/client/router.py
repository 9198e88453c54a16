"""Which gateway to ask next: the swarm stays usable as long as any peer that the client heard of lives.

Problem: the peer that a requester entered by may restart, hang, be full or lie. Solution: every call is
tried at the gateway that worked last, then at others, each with a back-off of its own after a failure,
until the caller's patience is over. All gateway requests may be repeated safely. More gateways are
learnt from those that answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import trio

from ravnest_p2p.client.session import Session
from ravnest_p2p.client.transport import Transport, peer_info
from ravnest_p2p.core.errors import (
    BusyError,
    ConfigError,
    PeerUnreachableError,
    RavnestError,
    RemoteFault,
)
from ravnest_p2p.network.gateway import PROTOCOL, Hello, Peers

T = TypeVar("T")
Work = Callable[[Session], Awaitable[T]]
_OPEN_S = 5.0
_FIRST_DELAY_S, _MAX_DELAY_S = 0.1, 4.0
_LEARN_EVERY_S = 10.0
_MAX_GATES = 256
_MAX_IDLE = 4


class Patience:
    """How long a call may go on without getting anywhere; `renew` after each step forward."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._until = trio.current_time() + seconds

    def renew(self, _bytes: int = 0) -> None:
        self._until = trio.current_time() + self.seconds

    def left_s(self) -> float:
        return self._until - trio.current_time()


@dataclass(eq=False)
class _Gate:
    """One address to enter by."""

    address: str
    failures: int = 0
    retry_at: float = 0.0
    idle: list[Session] = field(default_factory=list)


class Router:
    """Runs work at one of the known gateways. One trio task per call; calls may run side by side."""

    def __init__(self, transport: Transport, addresses: Iterable[str]) -> None:
        self._transport = transport
        self._gates: deque[_Gate] = deque()
        for address in addresses:
            self._add(address)
        self._learnt_at = float("-inf")

    @property
    def address(self) -> str:
        """Address of the gateway that is asked first."""
        return self._gates[0].address

    async def call(self, work: Work[T], patience: Patience) -> T:
        """`await work(session)` at the first gateway that gets through with it.

        Raises:
            PeerUnreachableError: none did before the patience was over; the message says where it was
                tried last.
            RavnestError: what the gateways answered; a `UserFault` at once, another when all have said so.
        """
        tried: set[str] = set()
        answer: RemoteFault | None = None
        last: RavnestError | None = None
        while True:
            if answer is not None and tried.issuperset(known.address for known in self._gates):
                raise answer
            gate = self._next()
            wait_s = gate.retry_at - trio.current_time()
            if patience.left_s() <= max(wait_s, 0.0):
                raise (
                    answer
                    or last
                    or PeerUnreachableError(
                        f"no gateway answered within {patience.seconds:.0f} s; last tried: {gate.address}"
                    )
                )
            if wait_s > 0:
                await trio.sleep(wait_s)
            try:
                value = await self._attempt(gate, work, patience)
            except BusyError as error:
                last = error
                self._failed(gate)
            except PeerUnreachableError as error:
                last = error
                tried.add(gate.address)
                self._failed(gate)
            except RemoteFault as error:
                answer = error
                tried.add(gate.address)
                self._failed(gate)
            else:
                self._worked(gate)
                await self._learn(gate)
                return value

    async def _attempt(self, gate: _Gate, work: Work[T], patience: Patience) -> T:
        """One try; a stream kept from an earlier call may have been closed meanwhile, which is no failure."""
        while gate.idle:
            session = gate.idle.pop()
            try:
                return await self._use(gate, session, work)
            except PeerUnreachableError:
                for stale in gate.idle:
                    await stale.close()
                gate.idle.clear()
        timeout_s = max(0.5, min(_OPEN_S, patience.left_s()))
        stream = await self._transport.open(gate.address, PROTOCOL, timeout_s)
        try:
            return await self._use(gate, Session(stream), work)
        except PeerUnreachableError:
            await self._transport.forget(gate.address)
            raise

    async def _use(self, gate: _Gate, session: Session, work: Work[T]) -> T:
        try:
            value = await work(session)
        except BaseException:
            await session.close()
            raise
        if len(gate.idle) < _MAX_IDLE:
            gate.idle.append(session)
        else:
            await session.close()
        return value

    def _next(self) -> _Gate:
        now = trio.current_time()
        for gate in self._gates:
            if gate.retry_at <= now:
                return gate
        return min(self._gates, key=lambda gate: gate.retry_at)

    def _failed(self, gate: _Gate) -> None:
        gate.failures += 1
        delay_s = min(_FIRST_DELAY_S * 2.0**gate.failures, _MAX_DELAY_S)
        gate.retry_at = trio.current_time() + delay_s

    def _worked(self, gate: _Gate) -> None:
        gate.failures, gate.retry_at = 0, 0.0
        if self._gates[0] is not gate:
            self._gates.remove(gate)
            self._gates.appendleft(gate)

    async def _learn(self, gate: _Gate) -> None:
        """Ask the gateway that just worked for more addresses, now and then; a failure costs nothing."""
        now = trio.current_time()
        if now - self._learnt_at < _LEARN_EVERY_S:
            return
        self._learnt_at = now

        async def ask(session: Session) -> list[Any]:
            hello = await session.request(Hello())
            peers = (await session.request(Peers())).get("peers")
            return [hello, *(peers if isinstance(peers, list) else ())]

        try:
            found = await self._attempt(gate, ask, Patience(_OPEN_S))
        except RavnestError:
            return
        for entry in found:
            addresses = entry.get("addresses") if isinstance(entry, dict) else None
            for address in addresses if isinstance(addresses, list) else ():
                self._add(address)

    def _add(self, address: object) -> None:
        if not isinstance(address, str) or len(self._gates) >= _MAX_GATES or len(address) > 300:
            return
        if any(gate.address == address for gate in self._gates):
            return
        try:
            peer_info(address)
        except ConfigError:
            return
        self._gates.append(_Gate(address))
