"""Measured links: round trip and bandwidth to another peer, at a bounded cost for both.

Problem: the planner needs real numbers, and a measurement that anyone may start is also a way to make a
peer send or receive without end. Solution: a round trip is the median of a few small calls; bandwidth is
one short stream transfer each way, which ends at 4 MiB or half a second, whichever is first. The serving
side grants a peer only so many bytes a minute, whatever it asks for, and the asking side takes no more
than it asked for.

request {direction: "up"} ──▶ chunk … end ──▶ ◀── end {bytes} request {direction: "down"} ──▶ ◀── chunk …
end
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from hivemind.p2p import P2P

from ravnest_p2p.core.errors import BusyError, FrameFormatError, PeerUnreachableError
from ravnest_p2p.core.types import PeerId
from ravnest_p2p.network.frames import FrameKind, Limits, pack
from ravnest_p2p.network.p2pd_waits import bounded
from ravnest_p2p.network.rpc import Rpc
from ravnest_p2p.network.streams import TRANSPORT_ERRORS, Stream, StreamService, open_stream

PROTOCOL = "/ravnest/1/probe"
MAX_BYTES = 4 << 20
MAX_SEND_S = 0.5
_CHUNK_BYTES = 1 << 16
_LIMITS = Limits(max_header_bytes=1024, max_payload_bytes=_CHUNK_BYTES)
_PINGS = 5
_SERVE_TIMEOUT_S = 15.0
_GRANT_S = 60.0


@dataclass(frozen=True, slots=True)
class Measured:
    """One link as seen from here; bandwidths in bits per second."""

    rtt_s: float
    up_bps: float
    down_bps: float


class _Grants:
    """Bytes that each peer may cause here in a minute, and all of them together."""

    def __init__(self, peer_bytes: int, all_bytes: int) -> None:
        self._peer_bytes = peer_bytes
        self._all_bytes = all_bytes
        self._since_s = float("-inf")
        self._spent: Counter[PeerId] = Counter()

    def take(self, peer: PeerId, count: int, now_s: float) -> None:
        if now_s - self._since_s > _GRANT_S:
            self._since_s = now_s
            self._spent.clear()
        if self._spent[peer] + count > self._peer_bytes or self._spent.total() + count > self._all_bytes:
            raise BusyError("enough was measured for this minute")
        self._spent[peer] += count


class Prober:
    """Measures links from here, and lets others measure theirs to here.

    Args:
        peer_bytes, all_bytes: what one peer, and all together, may make us send or take in a minute.

    Attributes:
        refused: refused probes, by the error's name.
    """

    def __init__(
        self, p2p: P2P, rpc: Rpc, *, peer_bytes: int = 8 * MAX_BYTES, all_bytes: int = 64 * MAX_BYTES
    ) -> None:
        self.refused: Counter[str] = Counter()
        self._p2p = p2p
        self._rpc = rpc
        self._grants = _Grants(peer_bytes, all_bytes)
        self._service = StreamService(p2p, PROTOCOL, self._serve, 4, 2, self.refused)

    async def start(self) -> None:
        """Answers probes from now on.

        Raises:
            LocalDaemonError: our p2pd does not take the protocol.
        """
        await self._rpc.serve("ping", _pong, max_bytes=64)
        await self._service.start()

    async def close(self) -> None:
        await self._service.close()

    async def rtt_s(self, peer: PeerId, timeout_s: float = 5.0) -> float:
        """Median round trip of a few calls; the first one, which may have to connect, does not count.

        Raises:
            PeerUnreachableError: an answer did not come in time.
        """
        samples = []
        for _ in range(1 + _PINGS):
            began_s = time.perf_counter()
            await self._rpc.call(peer, "ping", {}, timeout_s, max_bytes=64)
            samples.append(time.perf_counter() - began_s)
        return statistics.median(samples[1:])

    async def measure(self, peer: PeerId, timeout_s: float = 20.0) -> Measured:
        """Round trip and both bandwidths.

        Raises:
            PeerUnreachableError: not done within `timeout_s`, or the peer refused or broke off.
            FrameError: the peer sent something else, or more than was asked for.
        """
        try:
            return await bounded(self._measure(peer, timeout_s), timeout_s)
        except asyncio.TimeoutError:
            raise PeerUnreachableError(f"{peer} was not measured within {timeout_s:.1f} s") from None
        except TRANSPORT_ERRORS as error:
            raise PeerUnreachableError(f"{peer} broke off or refused a measurement: {error}") from None

    async def _measure(self, peer: PeerId, timeout_s: float) -> Measured:
        rtt_s = await self.rtt_s(peer, timeout_s)
        up_bps = await self._measure_one(peer, "up", rtt_s, timeout_s)
        down_bps = await self._measure_one(peer, "down", rtt_s, timeout_s)
        return Measured(rtt_s, up_bps, down_bps)

    async def _measure_one(self, peer: PeerId, direction: str, rtt_s: float, timeout_s: float) -> float:
        stream = await open_stream(self._p2p, peer, PROTOCOL, timeout_s)
        try:
            began_s = time.perf_counter()
            await stream.send(FrameKind.REQUEST, {"direction": direction})
            if direction == "up":
                count = await _send_chunks(stream)
                await _expect_end(stream, count)
            else:
                count = await _take_chunks(stream)
        finally:
            stream.close()
        # Both ways one round trip passes in which nothing flows.
        lasted_s = time.perf_counter() - began_s
        return 8 * count / max(lasted_s - rtt_s, lasted_s / 2, 1e-6)

    async def _serve(self, stream: Stream) -> None:
        try:
            await bounded(self._serve_one(stream), _SERVE_TIMEOUT_S)
        except asyncio.TimeoutError:
            raise PeerUnreachableError(f"{stream.peer} did not end a measurement") from None

    async def _serve_one(self, stream: Stream) -> None:
        request = await stream.receive(_LIMITS)
        direction = request.header.get("direction")
        if request.kind is not FrameKind.REQUEST or direction not in ("up", "down"):
            raise FrameFormatError("a probe asks for a direction")
        self._grants.take(stream.peer, MAX_BYTES, time.monotonic())
        if direction == "up":
            count = await _take_chunks(stream)
            await stream.send(FrameKind.END, {"bytes": count})
        else:
            await _send_chunks(stream)
        await stream.wire.ended()


async def _pong(_: PeerId, __: dict[str, Any]) -> dict[str, Any]:
    return {}


async def _send_chunks(stream: Stream) -> int:
    """Sends for half a second or 4 MiB; returns the bytes sent."""
    chunk = pack({}, [os.urandom(_CHUNK_BYTES)])
    stream.wire.write_ahead(2 * _CHUNK_BYTES)
    until_s = time.perf_counter() + MAX_SEND_S
    count = 0
    while count < MAX_BYTES and time.perf_counter() < until_s:
        await stream.send(FrameKind.CHUNK, chunk)
        count += _CHUNK_BYTES
    await stream.send(FrameKind.END, {"bytes": count})
    return count


async def _take_chunks(stream: Stream) -> int:
    """Takes chunks until their end; returns the bytes taken, at most 4 MiB."""
    count = 0
    while True:
        frame = await stream.receive(_LIMITS)
        if frame.kind is FrameKind.END and count:
            return count
        count += len(frame.payload)
        if frame.kind is not FrameKind.CHUNK or not frame.payload or count > MAX_BYTES:
            raise FrameFormatError("a probe is chunks of at most 4 MiB in all, and an end")


async def _expect_end(stream: Stream, count: int) -> None:
    frame = await stream.receive(_LIMITS)
    if frame.kind is not FrameKind.END or frame.header.get("bytes") != count:
        raise FrameFormatError("a probe ends with the number of bytes that arrived")
