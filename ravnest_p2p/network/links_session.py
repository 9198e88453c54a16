"""One stream of a link, from its welcome to its end: write what is due, read what comes, notice silence.

Problem: reading, writing, receipts, signs of life and a dead remote all happen on one stream, and a large
frame on a slow line must not look like death. Solution: one task writes (receipts and pings go between
data frames), one reads, and the session itself watches when the last byte came. It ends with the reason,
and the link decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from ravnest_p2p.core.errors import FrameFormatError
from ravnest_p2p.network.direct import Offer
from ravnest_p2p.network.frames import Frame, FrameKind, Packed, pack
from ravnest_p2p.network.links_state import LinkLimits, LinkState
from ravnest_p2p.network.streams import TRANSPORT_ERRORS, Stream

_NOTHING = pack({})
_RTT_SAMPLES = 8


class Session:
    """Runs one welcomed stream.

    Args:
        on_event: called whenever credit was freed, a frame arrived, or room was made.
        offer: of a direct connection, to begin with.

    Attributes:
        alive: a frame came on this stream.
        offered: what the other end offers; the first offer counts.
        goodbye: the other end closed the link, with this text.
        rtt_s: least round trip of the last pings, None before the first answer.
        write_s: time in which a frame was being written.
    """

    def __init__(
        self,
        stream: Stream,
        state: LinkState,
        limits: LinkLimits,
        on_event: Callable[[], None],
        offer: Offer | None = None,
    ) -> None:
        self.alive = False
        self.offered: asyncio.Future[Offer] = asyncio.get_running_loop().create_future()
        self.goodbye: str | None = None
        self.rtt_s: float | None = None
        self.bytes_sent = 0
        self.bytes_received = 0
        self.write_s = 0.0
        self._stream = stream
        self._state = state
        self._limits = limits
        self._on_event = on_event
        self._offer = offer
        self._work = asyncio.Event()
        self._room = asyncio.Event()
        self._heard_at = time.monotonic()
        self._reading = True
        self._receipt_at: float | None = None
        self._ping_at = 0.0
        self._pings: dict[int, float] = {}
        self._ping = 0
        self._rtts: list[float] = []
        self._pong: int | None = None
        self._farewell: str | None = None
        self._paused = False

    def wake(self) -> None:
        """There is something to send, or the user took a frame."""
        if self._receipt_at is None and self._state.owes_receipt:
            self._receipt_at = time.monotonic() + self._limits.receipt_s
        self._work.set()
        self._room.set()

    def pause(self) -> None:
        """Sends no new frame until `go_on`, or a goodbye."""
        self._paused = True

    def go_on(self) -> None:
        self._paused = False
        self._work.set()

    def say_goodbye(self, text: str) -> None:
        """Sends what is due, then ends the link in good order."""
        self._farewell = text
        self.go_on()

    async def run(self) -> str:
        """Runs until the stream ends; returns why.

        Raises:
            FrameError: the other end broke the protocol; the link has no future.
        """
        tasks = [asyncio.ensure_future(self._read()), asyncio.ensure_future(self._write())]
        try:
            while True:
                done, _ = await asyncio.wait(
                    tasks, timeout=self._limits.dead_s / 8, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    error = task.exception()
                    if isinstance(error, TRANSPORT_ERRORS):
                        return f"the stream broke ({error})"
                    if error is not None:
                        raise error
                    return "it was closed"
                silent_s = time.monotonic() - self._heard_at
                if self._reading and silent_s > self._limits.dead_s:
                    return f"no sign of life for {silent_s:.1f} s"
        finally:
            for task in tasks:
                task.cancel()
            self._stream.close()
            await asyncio.wait(tasks)
            for task in tasks:
                with contextlib.suppress(asyncio.CancelledError):
                    task.exception()

    async def _read(self) -> None:
        while self.goodbye is None:
            while self._state.is_full:
                self._reading = False
                self._room.clear()
                await self._room.wait()
            self._heard_at, self._reading = time.monotonic(), True
            self._handle(await self._stream.receive(self._limits.frame, self._heard))

    def _heard(self, count: int) -> None:
        self._heard_at = time.monotonic()
        self.bytes_received += count

    def _handle(self, frame: Frame) -> None:
        self.alive = True
        kind = frame.kind
        if kind is FrameKind.DATA:
            self._state.deliver(frame)
            if self._receipt_at is None:
                self._receipt_at = time.monotonic() + self._limits.receipt_s
            self._work.set()
        elif kind is FrameKind.PING:
            self._pong = frame.seq
            self._work.set()
        elif kind is FrameKind.PONG:
            self._measure(frame.seq)
        elif kind is FrameKind.OFFER:
            if not self.offered.done():
                self.offered.set_result(Offer.of(frame.header))
        elif kind is FrameKind.BYE:
            self.goodbye = str(frame.header.get("text", ""))[:500]
        elif kind is not FrameKind.ACK:
            raise FrameFormatError(f"{kind.name} frame on a link")
        if self._state.acknowledge(frame.ack) or kind is FrameKind.DATA:
            self._on_event()

    def _measure(self, ping: int) -> None:
        sent_at = self._pings.pop(ping, None)
        if sent_at is not None:
            self._rtts = [*self._rtts[1 - _RTT_SAMPLES :], time.monotonic() - sent_at]
            self.rtt_s = min(self._rtts)

    async def _write(self) -> None:
        if self._offer is not None:
            await self._send(FrameKind.OFFER, pack(self._offer._asdict()), 0)
        while True:
            self._work.clear()
            await self._write_signs()
            due = None if self._paused else self._state.next_frame()
            if due is not None:
                seq, packed = due
                self._state.receipt(flush=True)
                self._receipt_at = None
                await self._send(FrameKind.DATA, packed, seq)
                continue
            if self._farewell is not None:
                await self._send(FrameKind.BYE, pack({"text": self._farewell}), 0)
                return
            wake_at = self._ping_at if self._receipt_at is None else min(self._ping_at, self._receipt_at)
            alarm = asyncio.get_running_loop().call_later(wake_at - time.monotonic(), self._work.set)
            try:
                await self._work.wait()
            finally:
                alarm.cancel()

    async def _write_signs(self) -> None:
        """Pong, receipt and ping, where due; never more than one of each, whatever the other end sends."""
        now = time.monotonic()
        if self._pong is not None:
            ping, self._pong = self._pong, None
            await self._send(FrameKind.PONG, _NOTHING, ping)
        flush = self._receipt_at is not None and now >= self._receipt_at
        if flush:
            self._receipt_at = None
        if self._state.receipt(flush=flush) is not None:
            self._receipt_at = None
            await self._send(FrameKind.ACK, _NOTHING, 0)
        if now >= self._ping_at:
            self._ping_at = now + self._limits.ping_s
            self._ping += 1
            self._pings = {**dict(list(self._pings.items())[-3:]), self._ping: now}
            await self._send(FrameKind.PING, _NOTHING, self._ping)

    async def _send(self, kind: FrameKind, packed: Packed, number: int) -> None:
        started = time.monotonic()
        await self._stream.send(kind, packed, number, self._state.granted)
        self.write_s += time.monotonic() - started
        self.bytes_sent += packed.size_bytes
