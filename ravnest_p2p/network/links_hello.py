"""The first words on a link's stream: who calls, about which channel, and from where to go on.

Problem: an open stream proves nothing (p2pd opens towards dead handlers), may come from a peer of an
older generation, or from one that never was part of this. Solution: the dialler says hello and waits for
an answer within a deadline; the answer is a welcome with the other side's position, or a refusal with a
named error that tells whether trying again can help.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from ravnest_p2p.core.errors import (
    FrameFormatError,
    LinkRefusedError,
    PeerUnreachableError,
    RemoteFault,
    StaleGenerationError,
)
from ravnest_p2p.core.types import Generation, PeerId
from ravnest_p2p.network.bundle import MOST_STRANDS, Bundle
from ravnest_p2p.network.frames import Frame, FrameKind, Limits
from ravnest_p2p.network.p2pd_waits import bounded
from ravnest_p2p.network.streams import TRANSPORT_ERRORS, Stream

HELLO_LIMITS = Limits(max_header_bytes=2048, max_payload_bytes=0)
_U64 = 1 << 64


@dataclass(frozen=True, slots=True)
class Hello:
    """What a dialler says.

    Attributes:
        link: random bytes of this link, which tell a resumed link from a new one.
        resume: the link was welcomed before.
        next_expected: number of the first frame that the dialler lacks.
        ticket: on a direct connection, that of the offer; empty over libp2p.
        part, parts: which one of how many connections this is, that together are one (`network.bundle`).
    """

    channel: str
    generation: Generation
    link: bytes
    resume: bool
    next_expected: int
    ticket: bytes = b""
    part: int = 0
    parts: int = 1


class TryAgainError(LinkRefusedError):
    """A refusal that may not last: the channel is not there yet."""


def protocol_of(nonce: str) -> str:
    """The protocol id of one instance of a worker."""
    return f"/ravnest/1/link/{nonce}"


async def say_hello(streams: Sequence[Stream], hello: Hello, timeout_s: float) -> tuple[Stream, int]:
    """Sends the hello on all connections of one stream.

    Returns:
        That stream, and the number of the first frame that the other side lacks.
    Raises:
        PeerUnreachableError: no answer in time, or the stream ended: worth another try.
        TryAgainError: the channel is not there yet.
        StaleGenerationError, LinkRefusedError, FrameError: refused for good.
    """
    peer = streams[0].peer
    try:
        return await bounded(_say_hello(streams, hello), timeout_s)
    except asyncio.TimeoutError:
        raise PeerUnreachableError(f"{peer} left a hello unanswered for {timeout_s:.1f} s") from None
    except TRANSPORT_ERRORS as error:
        raise PeerUnreachableError(f"{peer} ended the stream at the hello: {error}") from None


async def _say_hello(streams: Sequence[Stream], hello: Hello) -> tuple[Stream, int]:
    body = {
        "channel": hello.channel,
        "generation": list(hello.generation),
        "link": hello.link,
        "resume": hello.resume,
        "next": hello.next_expected,
        "ticket": hello.ticket,
        "parts": len(streams),
    }
    for part, one in enumerate(streams):
        await one.send(FrameKind.HELLO, {**body, "part": part})
    stream = streams[0]
    if len(streams) > 1:
        stream = Stream(stream.peer, Bundle([one.wire for one in streams]))
    answer = await stream.receive(HELLO_LIMITS)
    if answer.kind is FrameKind.WELCOME:
        return stream, _number(answer.header.get("next"))
    if answer.kind is FrameKind.REFUSE:
        raise _refusal(stream.peer, hello.channel, answer)
    raise FrameFormatError(f"a hello was answered by {answer.kind.name}")


async def hear_hello(stream: Stream, timeout_s: float) -> Hello:
    """Reads a dialler's hello.

    Raises:
        PeerUnreachableError: none came in time.
        FrameError: something else came.
    """
    try:
        frame = await bounded(stream.receive(HELLO_LIMITS), timeout_s)
    except asyncio.TimeoutError:
        raise PeerUnreachableError(f"{stream.peer} said no hello within {timeout_s:.1f} s") from None
    body = frame.header
    channel, generation, link = body.get("channel"), body.get("generation"), body.get("link")
    ticket = body.get("ticket", b"")
    if frame.kind is not FrameKind.HELLO or not isinstance(channel, str) or len(channel) > 200:
        raise FrameFormatError("a link begins with a hello that names its channel")
    if not isinstance(link, bytes) or len(link) != 16 or not isinstance(ticket, bytes):
        raise FrameFormatError("a hello carries a link id of 16 bytes, and at most a ticket")
    part, parts = body.get("part", 0), body.get("parts", 1)
    if type(part) is not int or type(parts) is not int or not 0 <= part < parts <= MOST_STRANDS:
        raise FrameFormatError(f"a hello of connection {part!r} of {parts!r}")
    if not isinstance(generation, list) or [type(part) for part in generation] != [int, int, str]:
        raise FrameFormatError("a hello carries a generation")
    resume, position = body.get("resume") is True, _number(body.get("next"))
    return Hello(channel, Generation(*generation), link, resume, position, ticket, part, parts)


async def welcome(stream: Stream, next_expected: int) -> None:
    """Answers a hello."""
    await stream.send(FrameKind.WELCOME, {"next": next_expected})


async def refuse(stream: Stream, error: RemoteFault) -> None:
    """Answers a hello that is not accepted."""
    await stream.send(FrameKind.REFUSE, {"error": type(error).__name__, "text": str(error)[:500]})


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value < _U64:
        raise FrameFormatError("a hello carries the number of the next expected frame")
    return value


def _refusal(peer: PeerId, channel: str, answer: Frame) -> RemoteFault:
    known = {kind.__name__: kind for kind in (StaleGenerationError, TryAgainError)}
    kind = known.get(str(answer.header.get("error")), LinkRefusedError)
    return kind(f"{peer} refused channel {channel}: {str(answer.header.get('text'))[:500]}")
