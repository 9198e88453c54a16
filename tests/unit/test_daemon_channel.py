"""ravnestd believes nothing that a worker says: what is not a message ends the worker's channel by name."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable

import msgpack
import pytest

from ravnest_p2p.core.errors import FrameFormatError, FrameTooLargeError
from ravnest_p2p.daemon.channel import MAX_MESSAGE_BYTES, Channel
from ravnest_p2p.daemon.messages import COMMANDS, REPORTS, Endpoints, Report, RunFailed


def talk(scenario: Callable[[Channel, socket.socket], Awaitable[None]]) -> None:
    """Run with ravnestd's end as a channel, and the worker's end as a bare socket."""

    async def run() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            channel = await Channel.over(ours, REPORTS)
            try:
                await asyncio.wait_for(scenario(channel, theirs), 10)
            finally:
                channel.close()

    asyncio.run(run())


def framed(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def test_messages_arrive_as_they_were_sent() -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair()
        daemon, worker = await Channel.over(ours, REPORTS), await Channel.over(theirs, COMMANDS)
        report = Report(version=3, losses=((1, 0.5), (2, float("inf"))))
        await worker.send(report)
        assert await daemon.receive() == report
        await daemon.send(Endpoints(nonces={"peer": "nonce"}))
        assert await worker.receive() == Endpoints(nonces={"peer": "nonce"})
        worker.close()
        assert await daemon.receive() is None
        daemon.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgpack.packb([1, 2]),
        msgpack.packb({"type": "unknown"}),
        msgpack.packb({"type": "start"}),
        msgpack.packb({"type": "report", "more": 1}),
        msgpack.packb({"type": "report", "version": "three"}),
        msgpack.packb({"type": "report", "losses": [[1, 2.0]] * 5000}),
        msgpack.packb({"type": "failed", "error": "E", "message": "x" * 5000}),
        msgpack.packb({"type": "log", "level": "LOUD", "text": ""}),
    ],
)
def test_what_is_no_report_is_refused(body: bytes) -> None:
    async def scenario(channel: Channel, worker: socket.socket) -> None:
        worker.sendall(framed(body))
        with pytest.raises(FrameFormatError):
            await channel.receive()

    talk(scenario)


def test_an_oversized_message_is_refused_before_it_arrives() -> None:
    async def scenario(channel: Channel, worker: socket.socket) -> None:
        worker.sendall(struct.pack(">I", MAX_MESSAGE_BYTES + 1))
        with pytest.raises(FrameTooLargeError):
            await channel.receive()

    talk(scenario)


def test_a_worker_that_dies_in_mid_message_is_the_end() -> None:
    async def scenario(channel: Channel, worker: socket.socket) -> None:
        worker.sendall(framed(msgpack.packb({"type": "idle"}))[:-2])
        worker.close()
        assert await channel.receive() is None

    talk(scenario)


def test_a_failure_names_its_suspect() -> None:
    failed = RunFailed(error="LinkLostError", message="gone", suspect="peer")
    assert REPORTS.validate_python(failed.model_dump()) == failed
