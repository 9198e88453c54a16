"""Multiaddrs as people write them and as peers announce them.

Problem: a mistyped address should be answered with an example at once, not with a timeout from the Go
daemon a minute later; and of the addresses that a peer announces, some can never be dialled. Solution:
every address from a user passes through `parse`, every address from a peer through `dialable`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from ravnest_p2p.core.errors import ConfigError
from ravnest_p2p.core.types import PeerId
from ravnest_p2p.network.identity import is_peer_id

EXAMPLE_PEER = "/ip4/203.0.113.7/tcp/4001/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
EXAMPLE_LISTEN = "/ip4/0.0.0.0/tcp/4001"
MAX_ADDRESS_CHARS = 512


def parse(text: str, example: str = EXAMPLE_PEER) -> Multiaddr:
    """The multiaddr in the text.

    Raises:
        ConfigError: it is none; the message gives the example.
    """
    text = text.strip()
    try:
        if not text.startswith("/") or len(text) > MAX_ADDRESS_CHARS:
            raise ValueError("a multiaddr starts with /")
        address = Multiaddr(text)
        address.to_bytes()
    except (MultiaddrError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{text[:200]!r} is not an address; write it like {example}") from error
    return address


def parse_peer(text: str) -> str:
    """A peer's full address, with its peer id at the end, in canonical spelling.

    Raises:
        ConfigError: no address, or one without a peer id or port, or one that cannot be dialled.
    """
    address = parse(text)
    spelled = str(address)
    if peer_of(spelled) is None:
        raise ConfigError(f"{spelled} does not say which peer it leads to; it must end like {EXAMPLE_PEER}")
    if not dialable(spelled):
        raise ConfigError(f"{spelled} cannot be dialled; give the peer's own host and port: {EXAMPLE_PEER}")
    return spelled


def parse_listen(text: str) -> str:
    """An address to listen on: host and port, without a peer id.

    Raises:
        ConfigError: anything else.
    """
    spelled = str(parse(text, EXAMPLE_LISTEN))
    if "/p2p" in spelled or _host(spelled) is None or _port(spelled) is None:
        raise ConfigError(f"{spelled} is not an address to listen on; write it like {EXAMPLE_LISTEN}")
    return spelled


def peer_of(address: str) -> PeerId | None:
    """The peer that the address leads to (for a circuit, the one behind the relay), or None."""
    head, mark, last = address.rpartition("/p2p/")
    return PeerId(last) if mark and head and is_peer_id(last) else None


def transport_of(address: str) -> str:
    """The address without the peer id at its end: the route alone."""
    return address.rpartition("/p2p/")[0] if peer_of(address) is not None else address


def with_peer(address: str, peer: PeerId) -> str:
    """The full address of the peer at this route."""
    return f"{transport_of(address)}/p2p/{peer}"


def is_circuit(address: str) -> bool:
    """Whether the address goes through a relay."""
    return "/p2p-circuit" in address


def dialable(address: str, *, loopback: bool = True) -> bool:
    """Whether somebody else could dial it: a real host, and a real port.

    Args:
        loopback: count this computer's own addresses; right for peers on one computer only.
    """
    host, port = _host(address), _port(address)
    if host is None or not port:
        return False
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return bool(host)
    return not (ip.is_unspecified or ip.is_multicast or (ip.is_loopback and not loopback))


def ip_of(address: str) -> str | None:
    """The IP address that the multiaddr begins with, without a zone; None where it names a host otherwise."""
    host = _host(address)
    try:
        return None if host is None else str(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        return None


def one_per_peer(addresses: Iterable[str]) -> list[str]:
    """The first address of each peer, in order: relays must be named once, else reserving takes minutes."""
    first: dict[PeerId, str] = {}
    for address in addresses:
        peer = peer_of(address)
        if peer is not None:
            first.setdefault(peer, address)
    return list(first.values())


def port_of(address: str, transport: str) -> int | None:
    """TCP or UDP port at the start of the address, or None if it has another transport."""
    parts = address.split("/")
    if len(parts) > 4 and parts[3] == transport and parts[4].isdecimal():
        return int(parts[4])
    return None


def _host(address: str) -> str | None:
    parts = address.split("/")
    return parts[2] if len(parts) > 4 and parts[1] in ("ip4", "ip6", "dns", "dns4", "dns6") else None


def _port(address: str) -> int | None:
    tcp = port_of(address, "tcp")
    return port_of(address, "udp") if tcp is None else tcp
