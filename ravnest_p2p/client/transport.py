"""A libp2p host that only dials: py-libp2p, Noise and yamux over TCP, inside one trio task.

Problem: the host's own dialler suits a long-lived node: it blocks a peer that failed once for a minute,
ignores loopback addresses once it knows others, and tries several times with its own timings. A
requester must get back to a restarted peer within seconds. Solution: dial exactly one address with our
own deadline, keep one connection for each address, forget it at the first failure, and let the layer
above decide what to try next.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import cast

import multiaddr
import trio

from ravnest_p2p.client.protobuf import own_pool
from ravnest_p2p.core.errors import ConfigError, PeerUnreachableError
from ravnest_p2p.network.identity import Identity

with own_pool():
    from libp2p import new_host
    from libp2p.abc import IHost, INetConn, INetStream
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.custom_types import TProtocol
    from libp2p.network.config import RetryConfig
    from libp2p.network.stream.exceptions import StreamError
    from libp2p.network.swarm import Swarm
    from libp2p.peer.peerinfo import PeerInfo, info_from_p2p_addr
    from libp2p.protocol_muxer.multiselect_client import MultiselectClient
    from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator

_READ_BYTES = 64 * 1024
_CLOSE_S = 1.0


class Stream:
    """One open stream; every wait is bounded, and every failure is a `PeerUnreachableError`."""

    def __init__(self, stream: INetStream, address: str) -> None:
        self.address = address
        self._stream = stream
        self._buffer = bytearray()

    async def write(self, data: bytes, timeout_s: float) -> None:
        """Send all of `data`."""
        with _unreachable(self.address, "it did not take a message", timeout_s), trio.fail_after(timeout_s):
            await self._stream.write(data)

    async def read(self, size: int, timeout_s: float) -> bytes:
        """Exactly `size` bytes."""
        with _unreachable(self.address, "it did not answer", timeout_s), trio.fail_after(timeout_s):
            while len(self._buffer) < size:
                part = await self._stream.read(_READ_BYTES)
                if not part:
                    raise StreamError("the stream ended")
                self._buffer += part
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    async def close(self) -> None:
        """Give the stream up, also in the middle of a message."""
        with trio.CancelScope(deadline=trio.current_time() + _CLOSE_S, shield=True):
            try:
                await self._stream.reset()
            except Exception:
                return


class Transport:
    """Opens streams to peers by address. Make it with `transport(identity)`."""

    def __init__(self, host: IHost) -> None:
        self._network = host.get_network()
        self._connections: dict[str, INetConn] = {}
        self._dialling: dict[str, trio.Lock] = {}
        self._multiselect = MultiselectClient()

    async def open(self, address: str, protocol: str, timeout_s: float) -> Stream:
        """A new stream to the peer at `address`, which must end in /p2p/<peer id>.

        Raises:
            ConfigError: not such an address.
            PeerUnreachableError: nobody there, another identity, no such protocol, or the deadline passed.
        """
        info = peer_info(address)
        with _unreachable(address, "it could not be reached", timeout_s), trio.fail_after(timeout_s):
            async with self._dialling.setdefault(address, trio.Lock()):
                connection = self._connections.get(address)
                if connection is None or connection.is_closed:
                    connection = await self._network.dial_addr(info.addrs[0], info.peer_id)
                    self._connections[address] = connection
            try:
                stream = await connection.new_stream()
                communicator = MultiselectCommunicator(stream)
                await self._multiselect.select_one_of(
                    [TProtocol(protocol)], communicator, math.ceil(timeout_s)
                )
            except BaseException:
                await self.forget(address)
                raise
        return Stream(stream, address)

    async def forget(self, address: str) -> None:
        """Close the connection to `address`, if there is one: the next `open` dials afresh."""
        connection = self._connections.pop(address, None)
        if connection is not None:
            with trio.CancelScope(deadline=trio.current_time() + _CLOSE_S, shield=True):
                try:
                    await connection.close()
                except Exception:
                    return


@asynccontextmanager
async def transport(identity: Identity) -> AsyncIterator[Transport]:
    """A running transport, whose peer id is the identity's."""
    _quiet()
    host = new_host(key_pair=create_new_key_pair(identity.private_bytes()[4:36]), listen_addrs=[])
    cast(Swarm, host.get_network()).retry_config = RetryConfig(max_retries=0)
    async with host.run(listen_addrs=[]):
        yield Transport(host)


def peer_info(address: str) -> PeerInfo:
    """Peer id and dialable part of a multiaddress.

    Raises:
        ConfigError: the address is malformed, names no peer, or is not TCP.
    """
    try:
        info = info_from_p2p_addr(multiaddr.Multiaddr(address))
        protocols = [protocol.name for protocol in info.addrs[0].protocols()]
    except Exception as error:
        raise ConfigError(
            f"{address!r} is no peer's address; it looks like /ip4/192.0.2.1/tcp/4001/p2p/12D3Koo… ({error})"
        ) from None
    if "tcp" not in protocols or "p2p-circuit" in protocols:
        raise ConfigError(f"{address!r} cannot be dialled from here: only /…/tcp/…/p2p/… addresses can")
    return info


@contextmanager
def _unreachable(address: str, what: str, timeout_s: float) -> Iterator[None]:
    try:
        yield
    except trio.TooSlowError:
        raise PeerUnreachableError(f"{address}: {what} within {timeout_s:.0f} s") from None
    except Exception as error:
        cause = error.__cause__ or error
        raise PeerUnreachableError(f"{address}: {what}: {cause or type(cause).__name__}") from error


def _quiet() -> None:
    """libp2p logs every failed dial as an error; here that is ordinary, and an exception reports it."""
    if "LIBP2P_DEBUG" not in os.environ:
        logging.getLogger("libp2p").setLevel(logging.CRITICAL)
