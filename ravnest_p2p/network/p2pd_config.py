"""What p2pd is told: its flags, and ports that stay.

Problem: of p2pd's flags, the defaults are wrong for home computers: relay discovery makes a reservation
wait for minutes, two addresses of one relay do the same, hole punching is off without AutoNAT, and a
listen port of 0 means another port after each restart. Solution: every flag that matters is set from a
small config, and port 0 is turned into a free port that is then kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ravnest_p2p.core.errors import ConfigError
from ravnest_p2p.network.addresses import one_per_peer, parse_listen, parse_peer, port_of

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
EVERYWHERE = ("/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1")


@dataclass(frozen=True, slots=True)
class P2PDConfig:
    """Settings of one p2pd.

    Attributes:
        identity_path: the key file of `Identity`.
        runtime_dir: private folder with a short path, for the sockets; the janitor's.
        log_path: p2pd's output.
        listen: addresses without peer id; port 0 is chosen once and kept.
        announce: addresses to announce instead of those found out.
        relays: full addresses of relays; only the first of each relay is used. A peer with relays reserves a
            place at them when it finds that it cannot be reached from outside.
        reachability: "public" or "private" where the owner knows it, else None to find out.
        relay_service: whether others may be relayed through this peer.
        port_mapping: ask the router for a port (UPnP, NAT-PMP).
        ports_path: where the chosen ports are kept over restarts of the whole peer; None forgets them.
    """

    identity_path: Path
    runtime_dir: Path
    log_path: Path
    listen: tuple[str, ...] = LOOPBACK
    announce: tuple[str, ...] = ()
    relays: tuple[str, ...] = ()
    reachability: str | None = None
    relay_service: bool = False
    port_mapping: bool = False
    ports_path: Path | None = None
    connections_low: int = 256
    connections_high: int = 512
    startup_timeout_s: float = 15.0


def arguments(config: P2PDConfig, control_socket: Path, listen: tuple[str, ...]) -> list[str]:
    """p2pd's command line after the program.

    Bootstrap peers are not among it: p2pd gives up when none of them answers, but a peer has to start alone,
    so the directory connects to them instead.

    Args:
        listen: the addresses of the config with their ports filled in.
    Raises:
        ConfigError: an address or the reachability is senseless.
    """
    relays = one_per_peer(parse_peer(address) for address in config.relays)
    flags: dict[str, str | int] = {
        "id": str(config.identity_path),
        "listen": f"/unix{control_socket}",
        "hostAddrs": ",".join(listen),
        "relay": 1,
        "relayService": int(config.relay_service),
        "relayDiscovery": 0,
        "autonat": 1,
        "natPortMap": int(config.port_mapping),
        "noise": 1,
        "tls": 1,
        "muxer": "yamux",
        "connManager": 1,
        "connLo": config.connections_low,
        "connHi": config.connections_high,
        "connGrace": "30s",
        "idleTimeout": "0s",
        "pubsub": 0,
        "dhtClient" if config.reachability == "private" else "dhtServer": 1,
    }
    if config.reachability == "public":
        flags["forceReachabilityPublic"] = 1
    elif config.reachability == "private":
        flags["forceReachabilityPrivate"] = 1
    elif config.reachability is not None:
        raise ConfigError(f'reachability is "public", "private" or not set, not {config.reachability!r}')
    if relays:
        flags["autoRelay"] = 1
        flags["trustedRelays"] = ",".join(relays)
    if config.announce:
        flags["announceAddrs"] = ",".join(parse_listen(address) for address in config.announce)
    return [f"-{name}={value}" for name, value in flags.items()]


class PortKeeper:
    """Turns port 0 of a listen address into a free port, once, and gives the same one ever after."""

    def __init__(self, config: P2PDConfig) -> None:
        self._listen = tuple(parse_listen(address) for address in config.listen)
        self._path = config.ports_path
        self._chosen: dict[str, int] = self._load()

    @contextlib.contextmanager
    def claim(self) -> Iterator[tuple[str, ...]]:
        """The listen addresses with their ports, for as long as p2pd needs to take them.

        TCP ports are held meanwhile, so that no other peer of this computer chooses the same: p2pd shares a
        port with whoever else has it, and neither would notice.

        Raises:
            ConfigError: a port that is not ours to choose is taken by another program.
        """
        with contextlib.ExitStack() as held:
            yield tuple(self._claim(address, held) for address in self._listen)

    def keep(self) -> None:
        """p2pd has started on these ports: remember them for the next start of the peer."""
        if self._path is None or self._load() == self._chosen:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".new")
        temporary.write_text(json.dumps(self._chosen))
        os.replace(temporary, self._path)

    def forget(self) -> None:
        """Choose other ports at the next start."""
        self._chosen.clear()

    def _claim(self, address: str, held: contextlib.ExitStack) -> str:
        transport = "tcp" if port_of(address, "tcp") is not None else "udp"
        asked = port_of(address, transport)
        if asked:
            if _bind(address, transport, asked, held) is None:
                raise ConfigError(
                    f"port {asked} of {address} is taken; stop the program, or listen elsewhere"
                )
            return address
        port = self._chosen.get(address)
        if port is None or _bind(address, transport, port, held) is None:
            port = _bind(address, transport, 0, held)
            if port is None:
                raise ConfigError(f"{address} is no address of this computer; listen on /ip4/0.0.0.0/tcp/0")
            self._chosen[address] = port
        return address.replace(f"/{transport}/0", f"/{transport}/{port}", 1)

    def _load(self) -> dict[str, int]:
        if self._path is None:
            return {}
        with contextlib.suppress(OSError, ValueError, AttributeError):
            found = json.loads(self._path.read_text())
            return {
                address: port
                for address, port in found.items()
                if address in self._listen and type(port) is int and 0 < port < 65536
            }
        return {}


def _bind(address: str, transport: str, port: int, held: contextlib.ExitStack) -> int | None:
    """The port after binding it, or None where it is taken or the host is not ours.

    A TCP port stays bound until `held` is closed. It does not listen, so p2pd can. A bound UDP port would
    keep p2pd out.
    """
    _, version, host, *_ = address.split("/")
    family = socket.AF_INET6 if version.endswith("6") else socket.AF_INET
    kind = socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM
    with contextlib.ExitStack() as failed:
        probe = failed.enter_context(socket.socket(family, kind))
        if transport == "tcp":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return None
        if transport == "tcp":
            held.push(failed.pop_all())
        return int(probe.getsockname()[1])
