"""A link between two workers: frames in both directions, once and in order, over streams that come and go.

Problem: activations and gradients must not be lost, repeated or reordered when a relayed circuit expires
or a connection is upgraded, while a dead neighbour must be noticed within seconds and not waited for.
Solution: the link outlives its streams. It numbers and keeps what is not acknowledged (`links_state`),
runs one stream at a time (`links_session`), and gives up, with the reason, when no stream came back
within `resume_s`.

waiting ──stream──▶ connected ──stream lost──▶ waiting (the dialler tries again, the other end listens) │
│ └─ resume_s over ────┴─ closed, refused, protocol broken ──▶ over (every call raises the reason)
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ravnest_p2p.core.errors import FrameError, LinkClosedError, LinkLostError, RemoteFault
from ravnest_p2p.core.types import PeerId
from ravnest_p2p.network.direct import Offer
from ravnest_p2p.network.frames import Frame, FrameKind, pack
from ravnest_p2p.network.links_session import Session
from ravnest_p2p.network.links_state import LinkLimits, LinkState
from ravnest_p2p.network.p2pd_waits import bounded
from ravnest_p2p.network.streams import TRANSPORT_ERRORS, Stream

_GOODBYE_S = 1.0
_MAX_FRUITLESS = 12
"""Streams in a row that broke before a waiting frame got through, as behind a relay with a small limit."""


class Link:
    """One end of a link; made by `LinkServer.expect` and `LinkServer.dial`.

    Attributes:
        channel: its name, the same at both ends.
        remote: the peer at the other end.
        over: set once the link has ended, for whatever reason.
        end: that reason, once it is over; where it never was welcomed, the refusal itself.
        breach: how the other end broke the protocol, if it did.
    """

    def __init__(self, channel: str, remote: PeerId, limits: LinkLimits) -> None:
        self.channel = channel
        self.remote = remote
        self.over = asyncio.Event()
        self.end: RemoteFault | None = None
        self.breach: FrameError | None = None
        self.limits = limits
        self._state = LinkState(limits)
        self._session: Session | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._replaced = asyncio.Event()
        self._events: set[asyncio.Event] = set()
        self._send_lock = asyncio.Lock()
        self._connected = asyncio.Event()
        self._welcomed = False
        self._lost_at = time.monotonic()
        self._grace_s = limits.connect_s
        self._reason = "it never connected"
        self._past_bytes = [0, 0]
        self._past_write_s = 0.0
        self._fruitless = 0
        self._first_waiting = 0
        self._rtt_s: float | None = None

    def __repr__(self) -> str:
        return f"<Link {self.channel} with {self.remote}>"

    @property
    def bytes_sent(self) -> int:
        """Bytes put on streams, frames sent again included."""
        return self._past_bytes[0] + (self._session.bytes_sent if self._session else 0)

    @property
    def bytes_received(self) -> int:
        return self._past_bytes[1] + (self._session.bytes_received if self._session else 0)

    @property
    def write_s(self) -> float:
        """Time in which frames were being written. Buffers take what the line keeps up with at once, so while
        more is sent than that, bytes over this time is what the line carries."""
        return self._past_write_s + (self._session.write_s if self._session else 0.0)

    @property
    def rtt_s(self) -> float | None:
        """Least round trip of the last pings; None before the first answer."""
        return (self._session.rtt_s if self._session else None) or self._rtt_s

    @property
    def queued(self) -> int:
        """Frames given to `send` that the other end has not acknowledged."""
        return self._state.unacknowledged

    @property
    def waiting(self) -> int:
        """Frames that arrived and were not yet taken by `receive`."""
        return len(self._state.arrived)

    @property
    def next_expected(self) -> int:
        """Number of the first frame that this end lacks."""
        return self._state.next_expected

    @property
    def is_connected(self) -> bool:
        return self._connected.is_set()

    async def send(self, header: Mapping[str, Any], buffers: Sequence[Any] = ()) -> None:
        """Hands a frame over; returns when there was credit for it, not when it arrived.

        Args:
            header: msgpack types, string keys.
            buffers: the payload. Not copied: leave them unchanged until `queued` has fallen to 0, since
                they may have to be sent again.
        Raises:
            LinkLostError: the link is over; who, how long, and why.
            FrameTooLargeError: over the link's limits.
        """
        packed = pack(header, buffers, self.limits.frame)
        async with self._send_lock:
            await self._until(lambda: self._state.can_send(packed))
            if self.end is not None:
                raise self.end
            self._state.push(packed)
        if self._session is not None:
            self._session.wake()

    async def receive(self) -> Frame:
        """The next frame, in order.

        Raises:
            LinkLostError: the link is over and everything that arrived has been taken.
        """
        await self._until(lambda: bool(self._state.arrived))
        if self.end is not None and not self._state.arrived:
            raise self.end
        frame = self._state.take()
        if self._session is not None:
            self._session.wake()
        return frame

    async def drained(self, frames: int = 0) -> None:
        """Waits until `queued` has fallen to so many: the buffers of all before them are free again.

        Raises:
            LinkLostError: the link is over before.
        """
        await self._until(lambda: self.queued <= frames)
        if self.queued > frames and self.end is not None:
            raise self.end

    async def close(self, timeout_s: float = 2.0) -> None:
        """Waits until everything sent is acknowledged, within `timeout_s`, and ends the link at both ends."""
        deadline = time.monotonic() + timeout_s
        with contextlib.suppress(asyncio.TimeoutError):
            await bounded(self._until(lambda: not self._state.unacknowledged), timeout_s)
        if self._session is not None and self.end is None:
            self._session.say_goodbye("closed")
            with contextlib.suppress(asyncio.TimeoutError):
                await bounded(self._idle.wait(), max(0.1, deadline - time.monotonic()))
        self.fail(LinkClosedError(f"{self.channel} with {self.remote} was closed here"))

    async def leave(self, reason: str, timeout_s: float = _GOODBYE_S) -> None:
        """Ends the link without waiting for acknowledgements, but tells the other end if that is quick."""
        if self._session is not None and self.end is None:
            self._session.say_goodbye(reason)
            with contextlib.suppress(asyncio.TimeoutError):
                await bounded(self._idle.wait(), timeout_s)
        self.fail(LinkClosedError(f"{self.channel} with {self.remote} was ended here: {reason}"))

    def abort(self, reason: str) -> None:
        """Ends the link at once, because the other end is known to be dead."""
        self.fail(LinkLostError(f"{self.channel} with {self.remote}: {reason}"))

    def fail(self, error: RemoteFault) -> None:
        """Ends the link; the first end counts. A link that was in use is lost, whatever the cause."""
        if self.end is not None:
            return
        if self._welcomed and not isinstance(error, LinkLostError):
            self.end = LinkLostError(f"{self.channel} with {self.remote}: {error}")
            self.end.__cause__ = error
        else:
            self.end = error
        self.over.set()
        self._notify()

    async def pause(self) -> None:
        """Holds new frames back, and waits until the other end has those underway: a stream that takes this
        one's place then has nothing to repeat. It does not wait longer than half a hello may, where the line
        is slow, or the other end's user does not take what arrived.
        """
        session = self._session
        if session is None:
            return
        session.pause()
        with contextlib.suppress(asyncio.TimeoutError):
            await bounded(
                self._until(lambda: self._session is not session or not self._state.is_underway),
                self.limits.hello_s / 2,
            )

    def go_on(self) -> None:
        """Sends what was held back, on the stream that stays."""
        if self._session is not None:
            self._session.go_on()

    def resume(self, next_expected: int, *, moved: bool = False) -> int:
        """A new stream is to begin; returns the number of the first frame that this end lacks.

        Args:
            next_expected: the same of the other end.
            moved: that was said while an older stream still ran.
        Raises:
            FrameSequenceError: that position is impossible.
        """
        self._state.resume(next_expected, moved=moved)
        self._notify()
        return self._state.next_expected

    async def run(
        self, stream: Stream, offer: Offer | None = None, on_offer: Callable[[Offer], None] | None = None
    ) -> None:
        """Runs one stream, `resume` having been called with its position, until it or the link ends.

        Args:
            offer: of a direct connection, told to the other end.
            on_offer: told what the other end offers, once.
        """
        if self.end is not None:
            with contextlib.suppress(asyncio.TimeoutError, *TRANSPORT_ERRORS):
                await bounded(stream.send(FrameKind.BYE, {"text": str(self.end)}), _GOODBYE_S)
            stream.close()
            return
        session = Session(stream, self._state, self.limits, self._notify, offer)
        if on_offer is not None:
            session.offered.add_done_callback(lambda offered: on_offer(offered.result()))
        self._session = session
        self._welcomed = True
        self._idle.clear()
        self._connected.set()
        running = asyncio.ensure_future(session.run())
        over = asyncio.ensure_future(self.over.wait())
        replaced = asyncio.ensure_future(self._replaced.wait())
        try:
            await asyncio.wait({running, over, replaced}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (over, replaced, running):
                task.cancel()
            await asyncio.wait({running})
            self._finish(session, running)

    async def interrupt(self) -> None:
        """Ends the running stream, because another takes its place."""
        self._replaced.set()
        await self._idle.wait()
        self._replaced.clear()

    def explain(self, reason: str) -> None:
        """Why there is no stream, for the error that may follow."""
        self._reason = reason

    def _finish(self, session: Session, running: asyncio.Task[str]) -> None:
        self._past_bytes[0] += session.bytes_sent
        self._past_bytes[1] += session.bytes_received
        self._past_write_s += session.write_s
        self._rtt_s = session.rtt_s or self._rtt_s
        self._session = None
        self._connected.clear()
        self._idle.set()
        self._notify()
        if session.alive:
            self._lost_at, self._grace_s = time.monotonic(), self.limits.resume_s
        error = None if running.cancelled() else running.exception()
        if isinstance(error, FrameError):
            self.breach = error
            self.fail(error)
        elif error is not None:
            self.abort("its stream failed on our side")
            raise error
        elif session.goodbye is not None:
            self.fail(LinkClosedError(f"{self.remote} closed {self.channel}: {session.goodbye}"))
        else:
            self._reason = "its stream was replaced" if running.cancelled() else running.result()
            self._count_fruitless()

    def _count_fruitless(self) -> None:
        """Ends a link whose streams come but never carry the frame that waits."""
        first = self._state.first_unacknowledged
        stuck = self._state.unacknowledged > 0 and first == self._first_waiting
        self._fruitless = self._fruitless + 1 if stuck else 0
        self._first_waiting = first
        if self._fruitless >= _MAX_FRUITLESS:
            self.abort(
                f"{self._fruitless} streams in a row broke before frame {first} got through "
                f"({self._reason}); another route or smaller frames are needed"
            )

    async def watch(self) -> None:
        """Fails the link when it stays without a stream for too long; runs until the link is over."""
        while not self.over.is_set():
            await self._idle.wait()
            left_s = self._lost_at + self._grace_s - time.monotonic()
            if left_s <= 0:
                self.fail(self._lost())
                return
            waits = [asyncio.ensure_future(self.over.wait()), asyncio.ensure_future(self._connected.wait())]
            try:
                await asyncio.wait(waits, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in waits:
                    task.cancel()

    def _lost(self) -> LinkLostError:
        silent_s = time.monotonic() - self._lost_at
        return LinkLostError(
            f"{self.channel} with {self.remote}: without a stream for {silent_s:.1f} s ({self._reason}), "
            f"{self._grace_s:.1f} s are allowed; its generation is broken and a new plan has to form another"
        )

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Waits until `condition()` holds or the link is over."""
        if condition() or self.end is not None:
            return
        event = asyncio.Event()
        self._events.add(event)
        try:
            while not condition() and self.end is None:
                event.clear()
                await event.wait()
        finally:
            self._events.discard(event)

    def _notify(self) -> None:
        for event in self._events:
            event.set()
