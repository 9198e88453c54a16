"""The dialling end of a link: says hello, runs the stream, moves on to a direct connection, dials again.

Problem: a link is to outlive its streams, and to leave libp2p for a direct connection (`direct`) without a
pause and without sending anything twice. Solution: a link without a stream is dialled again with growing
pauses. One that has a stream keeps reading it while it moves: both ends hold new frames back until the other
one has what is underway, and only then change over.

    dialler                                                         accepting end
    opens the connections that were offered
    holds, until what it sent is acknowledged ── hello ──▶ holds, until what it sent is acknowledged;
    ends the old stream, goes on in the new one ◀─ welcome, position ── ends the old stream
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import Counter

from hivemind.p2p import P2P

from ravnest_p2p.core.errors import PeerUnreachableError, RemoteFault
from ravnest_p2p.core.types import Generation
from ravnest_p2p.network.direct import Direct, Offer
from ravnest_p2p.network.links import Link
from ravnest_p2p.network.links_hello import Hello, TryAgainError, protocol_of, say_hello
from ravnest_p2p.network.p2pd_waits import bounded
from ravnest_p2p.network.streams import Stream, open_stream

_STEADY_S = 1.0
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.5
_DIRECT_PAUSE_S = 60.0
"""Between two tries of a link to have a direct connection."""

logger = logging.getLogger(__name__)


class Dialling:
    """Keeps one link dialled, until it is over.

    Args:
        nonce: of the accepting worker's instance.
        direct: where the link may have direct connections beside libp2p.
        refused: counts how the other end broke the protocol, by the error's name.

    Attributes:
        welcomed: set once the other end has welcomed the link.
    """

    def __init__(
        self,
        link: Link,
        p2p: P2P,
        generation: Generation,
        nonce: str,
        direct: Direct | None,
        refused: Counter[str],
    ) -> None:
        self.welcomed = asyncio.Event()
        self._link = link
        self._p2p = p2p
        self._generation = generation
        self._nonce = nonce
        self._direct = direct
        self._refused = refused
        self._id = secrets.token_bytes(16)
        self._opening: asyncio.Task[None] | None = None
        self._open_from_s = 0.0
        self._moving: asyncio.Task[Stream | None] | None = None

    async def run(self) -> None:
        """Dials, runs the stream, and dials again with growing pauses, until the link is over."""
        link = self._link
        watch = asyncio.ensure_future(link.watch())
        pause_s = _FIRST_PAUSE_S
        try:
            while not link.over.is_set():
                began_s = time.monotonic()
                stream = await self._dial()
                while stream is not None:
                    await link.run(stream, on_offer=self._consider)
                    if link.breach is not None:
                        self._refused[type(link.breach).__name__] += 1
                    stream = await self._moved()
                if time.monotonic() - began_s > _STEADY_S:
                    pause_s = _FIRST_PAUSE_S
                with contextlib.suppress(asyncio.TimeoutError):
                    await bounded(link.over.wait(), pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        finally:
            watch.cancel()
            if self._opening is not None:
                self._opening.cancel()
            if self._moving is not None:
                self._moving.cancel()
                self._moving.add_done_callback(_close_moved)

    async def _dial(self) -> Stream | None:
        """A welcomed stream over libp2p; none where that failed, and the link knows why."""
        link = self._link
        try:
            stream = await open_stream(self._p2p, link.remote, protocol_of(self._nonce), link.limits.hello_s)
        except PeerUnreachableError as error:
            link.explain(str(error))
            return None
        return await self._greet([stream])

    async def _greet(self, streams: list[Stream], ticket: bytes = b"") -> Stream | None:
        """These connections as one stream that is welcomed, at the positions of both ends, and has taken the
        place of an older one; none where that failed, and the link knows why."""
        link = self._link
        resume, position = self.welcomed.is_set(), link.next_expected
        hello = Hello(link.channel, self._generation, self._id, resume, position, ticket)
        try:
            stream, theirs = await say_hello(streams, hello, link.limits.hello_s)
            await link.interrupt()
            link.resume(theirs)
        except BaseException as error:
            for one in streams:
                one.close()
            if not isinstance(error, RemoteFault):
                raise
            if isinstance(error, (PeerUnreachableError, TryAgainError)):
                link.explain(str(error))
            else:
                link.fail(error)
            return None
        self.welcomed.set()
        return stream

    def _consider(self, offer: Offer) -> None:
        """An offer came: try it, unless another one came to nothing a moment ago."""
        now = time.monotonic()
        is_opening = self._opening is not None and not self._opening.done()
        if self._direct is None or is_opening or now < self._open_from_s:
            return
        self._open_from_s = now + _DIRECT_PAUSE_S
        self._opening = asyncio.ensure_future(self._open(offer, self._direct))

    async def _open(self, offer: Offer, direct: Direct) -> None:
        link = self._link
        try:
            wires = await direct.open(link.remote, offer, link.limits.strands)
        except PeerUnreachableError as error:
            logger.info("%s stays with libp2p: %s", link.channel, error)
            return
        streams = [Stream(link.remote, wire) for wire in wires]
        self._moving = asyncio.ensure_future(self._move(streams, offer.ticket))

    async def _move(self, streams: list[Stream], ticket: bytes) -> Stream | None:
        """The stream to go on with; none where the other end does not take it."""
        await self._link.pause()
        stream = await self._greet(streams, ticket)
        if stream is None:
            self._link.go_on()
        return stream

    async def _moved(self) -> Stream | None:
        """What took the place of the stream that just ended, if anything did."""
        if self._opening is not None and self._opening.cancel():
            # Its offer ended with the stream; the next stream brings another.
            self._opening, self._open_from_s = None, 0.0
        moving, self._moving = self._moving, None
        return None if moving is None else await moving


def _close_moved(moving: asyncio.Task[Stream | None]) -> None:
    stream = None if moving.cancelled() or moving.exception() else moving.result()
    if stream is not None:
        stream.close()
