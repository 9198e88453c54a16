"""Direct connections between two workers: TLS over TCP, where libp2p has shown that they reach each other.

Problem: a byte that goes through both peers' p2pd is copied six times and encrypted and decrypted in another
process, which takes the processors from training; and a stream's window there can leave a line idle.
Solution: libp2p finds the way, proves who is who and goes through NATs; over it, the accepting end of a link
offers a port, the fingerprint of a certificate made for this worker alone, and a ticket. The dialler connects
to where libp2p is connected to already, checks the fingerprint, and says hello with the ticket; so each has
proven itself by what only the other end of the libp2p stream can know. The link goes on there, and back over
libp2p whenever the direct connection fails or cannot be made.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
import socket
import ssl
import struct
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ravnest_p2p.core.errors import FrameFormatError, PeerUnreachableError
from ravnest_p2p.core.types import PeerId
from ravnest_p2p.network.bundle import strands_for
from ravnest_p2p.network.p2pd_waits import bounded
from ravnest_p2p.network.wire import Wire

logger = logging.getLogger(__name__)

TICKET_BYTES = 32
CONNECT_S = 3.0
_HANDSHAKE_S = 3.0
_MAX_HANDSHAKES = 16
_NAME = "ravnest.invalid"
_PAUSE_S = 1.0
_VALID = timedelta(days=365)
_TCP_INFO_RTT = struct.Struct("@68xI")
"""Where linux has the round trip, in microseconds, of what it tells of a connection."""

Connect = Callable[[PeerId, int], Awaitable[socket.socket]]
"""A TCP connection to that port of the host that libp2p is connected to as this peer.

Raises OSError where there is none.
"""


class Offer(NamedTuple):
    """What the accepting end of a link says over libp2p.

    Attributes:
        port: where it listens.
        fingerprint: SHA-256 of its certificate, DER.
        ticket: 32 random bytes, for this link alone.
        strands: connections that it may be (`network.bundle`), at most.
    """

    port: int
    fingerprint: bytes
    ticket: bytes
    strands: int = 1

    @classmethod
    def of(cls, header: Mapping[str, Any]) -> Offer:
        """The offer that a frame's header says.

        Raises:
            FrameFormatError: none.
        """
        port, fingerprint, ticket, strands = (header.get(name) for name in cls._fields)
        if type(port) is not int or not 0 < port < 1 << 16:
            raise FrameFormatError("an offer names a port")
        if type(strands) is not int or strands < 1:
            raise FrameFormatError("an offer is for one connection or more")
        if not isinstance(fingerprint, bytes) or not isinstance(ticket, bytes):
            raise FrameFormatError("an offer carries a fingerprint and a ticket")
        if len(fingerprint) != TICKET_BYTES or len(ticket) != TICKET_BYTES:
            raise FrameFormatError(f"a fingerprint and a ticket have {TICKET_BYTES} bytes")
        return cls(port, fingerprint, ticket, strands)


class Direct:
    """Direct connections of one worker.

    Args:
        listener: bound and listening.
        connect: makes connections for it.
    """

    def __init__(self, listener: socket.socket, connect: Connect) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._connect = connect
        self._server, self._fingerprint = _identity()
        self._client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._client.minimum_version = ssl.TLSVersion.TLSv1_3
        # The certificate vouches for itself: its fingerprint came over libp2p, from the peer that it is for.
        self._client.check_hostname = False
        self._client.verify_mode = ssl.CERT_NONE
        self._greeting: set[asyncio.Task[None]] = set()

    def offer(self, strands: int = 1) -> Offer:
        """A new one, for at most so many connections."""
        port = self._listener.getsockname()[1]
        return Offer(port, self._fingerprint, secrets.token_bytes(TICKET_BYTES), strands)

    async def serve(self, handle: Callable[[Wire], Awaitable[None]]) -> None:
        """Hand every connection over, at most 16 before they have shaken hands; until cancelled."""
        loop, room = asyncio.get_running_loop(), asyncio.Semaphore(_MAX_HANDSHAKES)
        try:
            while True:
                await room.acquire()
                try:
                    accepted, _ = await loop.sock_accept(self._listener)
                except OSError as error:
                    logger.warning("no direct connection can be taken at present: %s", error)
                    room.release()
                    await asyncio.sleep(_PAUSE_S)
                    continue
                task = asyncio.ensure_future(self._greet(accepted, room, handle))
                self._greeting.add(task)
                task.add_done_callback(self._greeting.discard)
        finally:
            for task in self._greeting:
                task.cancel()

    async def _greet(
        self, accepted: socket.socket, room: asyncio.Semaphore, handle: Callable[[Wire], Awaitable[None]]
    ) -> None:
        try:
            wire = await self._wire(accepted, self._server, server=True)
        except (OSError, asyncio.TimeoutError) as error:
            logger.debug("a direct connection shook no hands: %r", error)
            return
        finally:
            room.release()
        await handle(wire)

    async def open(self, peer: PeerId, offer: Offer, most: int = 1) -> list[Wire]:
        """Connections to who made that offer: as many as the round trip asks for, at least one.

        Raises:
            PeerUnreachableError: nobody answered there in time, or somebody else.
        """
        first, rtt_s = await self._open(peer, offer)
        more = strands_for(rtt_s, min(most, offer.strands)) - 1
        tries = await asyncio.gather(*(self._open(peer, offer) for _ in range(more)), return_exceptions=True)
        return [first, *(found[0] for found in tries if not isinstance(found, BaseException))]

    async def _open(self, peer: PeerId, offer: Offer) -> tuple[Wire, float]:
        """A connection, and the round trip on it."""
        begun_s = time.monotonic()
        try:
            connection = await bounded(self._connect(peer, offer.port), CONNECT_S)
            rtt_s = _round_trip_s(connection, time.monotonic() - begun_s)
            wire = await self._wire(connection, self._client, server=False)
        except (OSError, asyncio.TimeoutError) as error:
            raise PeerUnreachableError(f"no direct connection to {peer}: {error!r}") from None
        certificate = wire.certificate
        if certificate is None or not secrets.compare_digest(_digest(certificate), offer.fingerprint):
            wire.abort()
            raise PeerUnreachableError(f"somebody else than {peer} answers at its port {offer.port}")
        return wire, rtt_s

    async def _wire(self, connection: socket.socket, context: ssl.SSLContext, *, server: bool) -> Wire:
        """Shake hands over a connected socket, which is closed where that fails."""
        loop, wire = asyncio.get_running_loop(), Wire()
        try:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if server:
                await loop.connect_accepted_socket(
                    lambda: wire, connection, ssl=context, ssl_handshake_timeout=_HANDSHAKE_S
                )
            else:
                await loop.create_connection(
                    lambda: wire,
                    sock=connection,
                    ssl=context,
                    server_hostname=_NAME,
                    ssl_handshake_timeout=_HANDSHAKE_S,
                )
        except BaseException:
            connection.close()
            raise
        return wire


def _identity() -> tuple[ssl.SSLContext, bytes]:
    """A key and a certificate that live as long as this process, ready to serve, and the fingerprint."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _NAME)])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + _VALID)
        .sign(key, hashes.SHA256())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    pem = serialization.Encoding.PEM
    with tempfile.TemporaryDirectory(prefix="ravnest-") as folder:
        file = Path(folder, "both.pem")
        file.touch(0o600)
        file.write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
            + certificate.public_bytes(pem)
        )
        context.load_cert_chain(file)
    return context, _digest(certificate.public_bytes(serialization.Encoding.DER))


def _round_trip_s(connection: socket.socket, connected_in_s: float) -> float:
    """As the system measured it, which a busy processor does not make longer, where it tells."""
    with contextlib.suppress(OSError, AttributeError, struct.error):
        told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_RTT.size)
        return min(connected_in_s, float(_TCP_INFO_RTT.unpack(told)[0]) / 1e6)
    return connected_in_s


def _digest(certificate: bytes) -> bytes:
    return hashlib.sha256(certificate).digest()
