"""All links of one worker: answers hellos, dials, and refuses strangers by name.

Problem: after a crash p2pd keeps the dead worker's handler, an old generation's neighbours keep calling,
and anyone may open a stream. Solution: the protocol id carries a nonce of this instance; a stream is
nothing until its hello named a channel that is expected, from the peer that is expected, in the
generation that is obeyed. A link's dialler keeps it alive, and moves it on to a direct connection where there
can be one (`link_dialling`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import Counter
from collections.abc import Coroutine
from typing import Any

from hivemind.p2p import P2P

from ravnest_p2p.core.errors import (
    BusyError,
    LinkLostError,
    LinkRefusedError,
    OurFault,
    PeerUnreachableError,
    RemoteFault,
    StaleGenerationError,
)
from ravnest_p2p.core.types import Generation, PeerId
from ravnest_p2p.network.bundle import Bundle
from ravnest_p2p.network.direct import Direct, Offer
from ravnest_p2p.network.link_dialling import Dialling
from ravnest_p2p.network.links import Link
from ravnest_p2p.network.links_hello import (
    Hello,
    TryAgainError,
    hear_hello,
    protocol_of,
    refuse,
    welcome,
)
from ravnest_p2p.network.links_state import LinkLimits
from ravnest_p2p.network.p2pd_waits import bounded
from ravnest_p2p.network.streams import TRANSPORT_ERRORS, Stream, StreamService
from ravnest_p2p.network.wire import Wire

_MAX_STREAMS = 1024
_MAX_PER_PEER = 256
_MAX_HELLOS = 64
_HELLO_S = 3.0
_NOBODY = PeerId("")

logger = logging.getLogger(__name__)


class _Expected:
    """An accepting link and the dialling link that it is bound to."""

    def __init__(self, link: Link, hello_s: float) -> None:
        self.link = link
        self.hello_s = hello_s
        self.bound_to: bytes | None = None
        self.turn = asyncio.Lock()
        self.offer: Offer | None = None
        self.gathered = _Gathered()


class _Gathered:
    """Connections that came for one offer, until they are all that the dialler made."""

    def __init__(self) -> None:
        self.wires: dict[int, Wire] = {}
        self.complete = asyncio.Event()
        self.over = asyncio.Event()


class LinkServer:
    """The links of one worker instance in one generation.

    Args:
        direct: where links may have direct connections beside libp2p.

    Attributes:
        refused: hellos and streams that were refused, by the error's name.
    """

    def __init__(self, p2p: P2P, generation: Generation, direct: Direct | None = None) -> None:
        self.generation = generation
        self.refused: Counter[str] = Counter()
        self._p2p = p2p
        self._direct = direct
        self._expected: dict[str, _Expected] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._links: set[Link] = set()
        self._hellos = 0
        self._service: StreamService | None = None

    async def start(self) -> str:
        """Listens; returns the nonce that diallers need.

        Raises:
            LocalDaemonError: our p2pd does not take the protocol.
        """
        nonce = secrets.token_hex(16)
        self._service = StreamService(
            self._p2p, protocol_of(nonce), self._accept, _MAX_STREAMS, _MAX_PER_PEER, self.refused
        )
        await self._service.start()
        if self._direct is not None:
            self._keep(self._direct.serve(self._accept_direct))
        return nonce

    async def close(self) -> None:
        """Ends every link, with a quick goodbye where that is possible, and stops listening."""
        await asyncio.gather(*(link.leave("the worker stops") for link in list(self._links)))
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2.0)
        if self._service is not None:
            await self._service.close()

    def expect(self, channel: str, remote: PeerId, limits: LinkLimits | None = None) -> Link:
        """The accepting end of a channel; `send` and `receive` work at once and wait for the stream.

        Raises:
            OurFault: the channel is expected already.
        """
        if channel in self._expected and not self._expected[channel].link.over.is_set():
            raise OurFault(f"channel {channel} is expected already")
        link = Link(channel, remote, limits or LinkLimits())
        self._expected[channel] = _Expected(link, link.limits.hello_s)
        self._start(link, link.watch())
        return link

    async def dial(self, remote: PeerId, nonce: str, channel: str, limits: LinkLimits | None = None) -> Link:
        """The dialling end of a channel; returns once the other end has welcomed it.

        Raises:
            StaleGenerationError: the other end obeys another generation.
            LinkRefusedError: the other end expects another peer, or took this channel with another link.
            PeerUnreachableError: no welcome within `limits.connect_s`.
        """
        link = Link(channel, remote, limits or LinkLimits())
        dialling = Dialling(link, self._p2p, self.generation, nonce, self._direct, self.refused)
        self._start(link, dialling.run())
        waits = [asyncio.ensure_future(dialling.welcomed.wait()), asyncio.ensure_future(link.over.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            link.abort("it was given up while it was dialled")
            raise
        finally:
            for task in waits:
                task.cancel()
        if link.end is None or dialling.welcomed.is_set():
            return link
        if isinstance(link.end, LinkLostError):
            raise PeerUnreachableError(str(link.end))
        raise link.end

    def _start(self, link: Link, work: Coroutine[Any, Any, None]) -> None:
        self._links.add(link)
        self._keep(work).add_done_callback(lambda _: self._links.discard(link))

    def _keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(self, stream: Stream) -> None:
        """A stream over libp2p, which knows who it is from."""
        await self._answer(stream, await self._hear(stream))

    async def _accept_direct(self, wire: Wire) -> None:
        """A direct connection, from nobody yet."""
        stream = Stream(_NOBODY, wire)
        try:
            hello = await self._hear(stream)
            expected = self._expected.get(hello.channel)
            offer = None if expected is None else expected.offer
            if expected is None or offer is None or not secrets.compare_digest(hello.ticket, offer.ticket):
                raise LinkRefusedError(f"no direct connection was offered for {hello.channel!r}")
            stream.peer = expected.link.remote
            await self._join(expected, stream, hello, offer)
        except RemoteFault as error:
            self.refused[type(error).__name__] += 1
        except TRANSPORT_ERRORS:
            pass
        finally:
            stream.close()

    async def _join(self, expected: _Expected, stream: Stream, hello: Hello, offer: Offer) -> None:
        """One of the connections that an offer is taken by; whoever comes last answers for all."""
        gathered = expected.gathered
        if hello.parts > offer.strands or hello.part in gathered.wires:
            raise LinkRefusedError(f"connection {hello.part} of {hello.parts} was not offered")
        gathered.wires[hello.part] = stream.wire
        if len(gathered.wires) < hello.parts:
            try:
                await bounded(gathered.complete.wait(), _HELLO_S)
            except asyncio.TimeoutError:
                raise PeerUnreachableError(f"{stream.peer} made only a part of its connections") from None
            await gathered.over.wait()
            return
        expected.offer, expected.gathered = None, _Gathered()
        gathered.complete.set()
        wires = list(gathered.wires.values())
        try:
            wire = Bundle(wires) if len(wires) > 1 else stream.wire
            await self._answer(Stream(stream.peer, wire), hello)
        finally:
            gathered.over.set()

    async def _hear(self, stream: Stream) -> Hello:
        if self._hellos >= _MAX_HELLOS:
            raise BusyError("too many streams without a hello")
        self._hellos += 1
        try:
            return await hear_hello(stream, _HELLO_S)
        finally:
            self._hellos -= 1

    async def _answer(self, stream: Stream, hello: Hello) -> None:
        """Welcome or refuse, and run what was welcomed."""
        try:
            expected = self._find(stream.peer, hello)
            link, moved = expected.link, bool(hello.ticket)
            async with expected.turn:
                if moved:
                    await link.pause()
                await link.interrupt()
                position = link.resume(hello.next_expected, moved=moved)
                expected.bound_to = hello.link
                await bounded(welcome(stream, position), expected.hello_s)
        except asyncio.TimeoutError:
            raise PeerUnreachableError(f"{stream.peer} did not take a welcome") from None
        except RemoteFault as error:
            with contextlib.suppress(asyncio.TimeoutError, *TRANSPORT_ERRORS):
                await bounded(refuse(stream, error), _HELLO_S)
            raise
        if self._direct is not None and not moved:
            expected.offer = self._direct.offer(link.limits.strands)
            expected.gathered = _Gathered()
            await link.run(stream, expected.offer)
        else:
            await link.run(stream)
        if link.breach is not None:
            raise link.breach

    def _find(self, peer: PeerId, hello: Hello) -> _Expected:
        """The link that a hello means.

        Raises:
            StaleGenerationError, LinkRefusedError, TryAgainError: none.
        """
        if hello.generation != self.generation:
            raise StaleGenerationError(f"generation {hello.generation}, this worker obeys {self.generation}")
        expected = self._expected.get(hello.channel)
        if expected is None:
            if hello.resume:
                raise LinkRefusedError(f"channel {hello.channel!r} has ended here")
            raise TryAgainError(f"channel {hello.channel!r} is not expected yet")
        if peer != expected.link.remote:
            raise LinkRefusedError(f"channel {hello.channel!r} is for another peer")
        if expected.link.over.is_set():
            raise LinkRefusedError(f"channel {hello.channel!r} has ended here")
        if hello.link != expected.bound_to and (hello.resume or expected.bound_to is not None):
            raise LinkRefusedError(f"channel {hello.channel!r} is taken by another link")
        return expected
