"""Hosts with links of a given rate: network namespaces on one switch, each shaped both ways.

Needs linux, root and iproute2.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from itertools import count
from types import TracebackType

from ravnest_p2p.testing.local_swarm import Host

DEVICE = "shaped"
BURST_BYTES, QUEUE_S = 1 << 16, 0.05
"""What a link sends at once at most, and how long a packet may wait for it."""


class ShapedNet:
    """A context manager; its hosts are there inside.

    Args:
        rates_bps: of each host's link, up and down alike; of the bits of whole packets.
    Raises:
        OSError, subprocess.CalledProcessError: not root, or iproute2 refused.
    """

    _number = count()

    def __init__(self, rates_bps: Sequence[float]) -> None:
        name = f"shaped-{os.getpid()}-{next(self._number)}"
        self._rates_bps = rates_bps
        self._switch = name
        self._names = [f"{name}-{n}" for n in range(len(rates_bps))]
        # Public-looking, since go-libp2p believes no other address; the namespaces lead nowhere else.
        self._addresses = [f"11.1.0.{n + 1}" for n in range(len(rates_bps))]

    @property
    def hosts(self) -> list[Host]:
        return [
            Host(address, ("ip", "netns", "exec", name))
            for name, address in zip(self._names, self._addresses, strict=True)
        ]

    def __enter__(self) -> ShapedNet:
        try:
            _run("ip", "netns", "add", self._switch)
            _run("ip", "-n", self._switch, "link", "add", "switch", "type", "bridge")
            _run("ip", "-n", self._switch, "link", "set", "switch", "up")
            for n, (name, address) in enumerate(zip(self._names, self._addresses, strict=True)):
                self._add(n, name, address)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _add(self, n: int, name: str, address: str) -> None:
        port, rate = f"port{n}", f"{self._rates_bps[n]:.0f}bit"
        _run("ip", "netns", "add", name)
        _run("ip", "-n", self._switch, "link", "add", port, "type", "veth", "peer", DEVICE, "netns", name)
        _run("ip", "-n", self._switch, "link", "set", port, "master", "switch", "up")
        _run("ip", "-n", name, "address", "add", f"{address}/24", "dev", DEVICE)
        for device in (DEVICE, "lo"):
            _run("ip", "-n", name, "link", "set", device, "up")
        for space, device in ((name, DEVICE), (self._switch, port)):
            shape = ("rate", rate, "burst", str(BURST_BYTES), "latency", f"{QUEUE_S * 1e3:.0f}ms")
            _run("tc", "-n", space, "qdisc", "add", "dev", device, "root", "tbf", *shape)

    def _close(self) -> None:
        for name in (*self._names, self._switch):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
