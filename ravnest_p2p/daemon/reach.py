"""Direct connections for a worker: to members of its plan, at the hosts where libp2p is connected to them.

Problem: a worker runs what strangers wrote, and may not be able to connect to whatever it likes. Solution: it
names a peer and a port; ravnestd connects only to peers that the worker's plan names, only where p2pd holds a
connection to that very peer without a relay between, and to no port that a system's own services have. So the
worker reaches nobody whom that peer could not reach by himself.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence

from ravnest_p2p.core.types import PeerId
from ravnest_p2p.network.addresses import ip_of

FIRST_PORT = 1024
CONNECT_S = 1.5
_PORT_BYTES = 2

HostsOf = Callable[[PeerId], Awaitable[list[str]]]
"""IP addresses at which p2pd is connected to a peer, relays left out."""


def asking(peer: PeerId, port: int) -> bytes:
    """What a worker says at the door."""
    return port.to_bytes(_PORT_BYTES, "big") + peer.encode()


class Reach:
    """The way out for one worker.

    Attributes:
        peers: of the worker's plan.
    """

    def __init__(self, hosts_of: HostsOf) -> None:
        self.peers: Collection[PeerId] = ()
        self._hosts_of = hosts_of

    async def connect(self, asked: bytes) -> socket.socket:
        """A connection to whom the worker asked for, within 1.5 s.

        Raises:
            OSError: it may not have one, or there is none.
        """
        port = int.from_bytes(asked[:_PORT_BYTES], "big")
        peer = PeerId(asked[_PORT_BYTES:].decode("ascii", "replace"))
        if peer not in self.peers or port < FIRST_PORT:
            raise PermissionError(f"port {port} of {peer} is none for a worker")
        hosts = await self._hosts_of(peer)
        if not hosts:
            raise ConnectionRefusedError(f"p2pd has no direct connection to {peer}")
        return await _first(hosts, port)


async def _first(hosts: Sequence[str], port: int) -> socket.socket:
    """A connection to whichever host takes one; all are asked at once."""
    asked = [asyncio.create_task(_connected(host, port)) for host in hosts]
    pending = set(asked)
    deadline_s = asyncio.get_running_loop().time() + CONNECT_S
    try:
        while pending:
            left_s = deadline_s - asyncio.get_running_loop().time()
            done, pending = await asyncio.wait(
                pending, timeout=max(0.0, left_s), return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                break
            for task in done:
                if task.exception() is None:
                    return task.result()
        raise ConnectionRefusedError(f"nobody takes connections at port {port} of {', '.join(hosts)}")
    finally:
        for task in asked:
            task.cancel()


async def _connected(host: str, port: int) -> socket.socket:
    connection = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    connection.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(connection, (host, port))
    except BaseException:
        connection.close()
        raise
    return connection


def listener(addresses: Sequence[str]) -> socket.socket | None:
    """A socket that listens at a free port of the first multiaddr's IP address; None where there is none."""
    for host in filter(None, map(ip_of, addresses)):
        with contextlib.suppress(OSError):
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            return socket.create_server((host, 0), family=family)
    return None
