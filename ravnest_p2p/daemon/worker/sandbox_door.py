"""The doors of a worker: connections made by ravnestd and handed over.

Problem: a kernel's filter sees that a process connects, not whereto, and on a desktop the sockets of the
session bus or of docker start any program outside the worker's walls. Solution: the worker may not connect at
all. It asks ravnestd over an inherited socket; ravnestd connects to p2pd, and nowhere else, and passes the
connected socket back. A second door leads to other members of the worker's plan (`daemon.reach`).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

from ravnest_p2p.network.p2pd_waits import bounded

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 8.0
OPENED, REFUSED = b"+", b"-"
UNREAD_BYTES = 4096
"""Answers, each holding a connection open, that a worker may leave unread."""

Connect = Callable[[bytes], Awaitable[socket.socket]]
"""A connection for what the worker said, of at most 255 bytes. Raises OSError where it gets none."""


def to_p2pd(control_socket: str) -> Connect:
    """Connections to p2pd, whatever the worker says."""

    async def connect(_: bytes) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(connection, control_socket)
        except BaseException:
            connection.close()
            raise
        return connection

    return connect


class Doorkeeper:
    """ravnestd's side; make one in the running loop, `close` it with the worker.

    Attributes:
        theirs: the worker's end; close it once the worker has it.
    """

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._ours, self.theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD_BYTES)
        self._task = asyncio.create_task(self._serve())

    async def close(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self.theirs.close()

    async def _serve(self) -> None:
        """Until the worker is gone, or leaves answers lying about."""
        with self._ours, contextlib.suppress(OSError):
            while length := await self._heard(1):
                asked = await self._heard(length[0])
                try:
                    connection = await bounded(self._connect(asked), CONNECT_TIMEOUT_S)
                except (OSError, asyncio.TimeoutError):
                    self._ours.send(REFUSED)
                else:
                    with connection:
                        socket.send_fds(self._ours, [OPENED], [connection.fileno()])

    async def _heard(self, count: int) -> bytes:
        """So many bytes; fewer at the end."""
        heard = b""
        while len(heard) < count:
            more = await asyncio.get_running_loop().sock_recv(self._ours, count - len(heard))
            if not more:
                break
            heard += more
        return heard


class Door:
    """The worker's side, at an inherited file descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._asking = threading.Lock()
        self._socket = socket.socket(fileno=descriptor)
        self._socket.settimeout(ANSWER_TIMEOUT_S)

    async def open(self, ask: bytes = b"") -> socket.socket:
        """A new connection.

        Args:
            ask: whereto, at most 255 bytes; nothing for p2pd.
        Raises:
            ConnectionRefusedError: there is none at present.
            OSError: ravnestd does not answer.
        """
        # In a thread, so that whoever is cancelled while he waits leaves no answer to the next one.
        return await asyncio.to_thread(self._ask, ask)

    def _ask(self, ask: bytes) -> socket.socket:
        with self._asking:
            self._socket.sendall(bytes([len(ask)]) + ask)
            _, descriptors, *_ = socket.recv_fds(self._socket, 1, 1)
        if not descriptors:
            raise ConnectionRefusedError("ravnestd got no connection")
        connection = socket.socket(fileno=descriptors[0])
        connection.setblocking(False)
        return connection


class DoorLoop(uvloop.Loop):
    """An event loop whose connections to unix sockets, whatever their path, come through the door."""

    door: Door

    async def create_unix_connection(
        self,
        protocol_factory: Any,
        path: str | None = None,
        *,
        sock: socket.socket | None = None,
        **options: Any,
    ) -> Any:
        connection = sock or await self.door.open()
        return await super().create_unix_connection(protocol_factory, sock=connection, **options)

    @classmethod
    def through(cls, door: Door) -> DoorLoop:
        loop = cls()
        loop.door = door
        return loop
