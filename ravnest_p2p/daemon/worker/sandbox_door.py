"""The one door of a worker: connections to p2pd, made by ravnestd and handed over.

Problem: a kernel's filter sees that a process connects, not whereto, and on a desktop the sockets of the
session bus or of docker start any program outside the worker's walls. Solution: the worker may not connect at
all. It asks ravnestd over an inherited socket, one byte a connection; ravnestd connects to p2pd, and nowhere
else, and passes the connected socket back.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import Any

import uvloop

from ravnest_p2p.network.p2pd_waits import bounded

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 8.0
ASKED, OPENED, REFUSED = b"?", b"+", b"-"
UNREAD_BYTES = 4096
"""Answers, each holding a connection open, that a worker may leave unread."""


class Doorkeeper:
    """ravnestd's side; make one in the running loop, `close` it with the worker.

    Attributes:
        theirs: the worker's end; close it once the worker has it.
    """

    def __init__(self, control_socket: str) -> None:
        self._path = control_socket
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
        loop = asyncio.get_running_loop()
        with self._ours, contextlib.suppress(OSError):
            while await loop.sock_recv(self._ours, 1):
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.setblocking(False)
                    try:
                        await bounded(loop.sock_connect(connection, self._path), CONNECT_TIMEOUT_S)
                    except (OSError, asyncio.TimeoutError):
                        self._ours.send(REFUSED)
                    else:
                        socket.send_fds(self._ours, [OPENED], [connection.fileno()])


class Door:
    """The worker's side, at an inherited file descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._asking = threading.Lock()
        self._socket = socket.socket(fileno=descriptor)
        self._socket.settimeout(ANSWER_TIMEOUT_S)

    async def open(self) -> socket.socket:
        """A new connection to p2pd.

        Raises:
            ConnectionRefusedError: p2pd does not serve at present.
            OSError: ravnestd does not answer.
        """
        # In a thread, so that whoever is cancelled while he waits leaves no answer to the next one.
        return await asyncio.to_thread(self._ask)

    def _ask(self) -> socket.socket:
        with self._asking:
            self._socket.sendall(ASKED)
            _, descriptors, *_ = socket.recv_fds(self._socket, 1, 1)
        if not descriptors:
            raise ConnectionRefusedError("p2pd does not serve")
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
