"""Hosts with links of a given rate: network namespaces on one switch, each shaped both ways.

Needs linux, root and iproute2.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import count

from benchmarks.namespaces import TCP, Net, delete, ip, run

DEVICE = "shaped"
BURST_BYTES, QUEUE_S = 1 << 16, 0.05
"""What a link sends at once at most, and how long a packet may wait for it."""


class ShapedNet(Net):
    """Args:
    rates_bps: of each host's link, up and down alike; of the bits of whole packets.
    """

    _number = count()

    def __init__(self, rates_bps: Sequence[float]) -> None:
        self._switch = f"shaped-{os.getpid()}-{next(self._number)}"
        self._rates_bps = rates_bps
        numbers = range(len(rates_bps))
        super().__init__([f"{self._switch}-{n}" for n in numbers], [f"11.1.0.{n + 1}" for n in numbers])

    def _join(self) -> None:
        ip("netns", "add", self._switch)
        ip("-n", self._switch, "link", "add", "switch", "type", "bridge")
        ip("-n", self._switch, "link", "set", "switch", "up")
        for n, (name, address) in enumerate(zip(self._names, self._addresses, strict=True)):
            port, rate = f"port{n}", f"{self._rates_bps[n]:.0f}bit"
            ip("-n", self._switch, "link", "add", port, "type", "veth", "peer", DEVICE, "netns", name)
            ip("-n", self._switch, "link", "set", port, "master", "switch", "up")
            ip("-n", name, "address", "add", f"{address}/24", "dev", DEVICE)
            ip("-n", name, "link", "set", DEVICE, "up")
            ip("-n", name, "route", "change", "11.1.0.0/24", "dev", DEVICE, "src", address, *TCP)
            for space, device in ((name, DEVICE), (self._switch, port)):
                shape = ("rate", rate, "burst", str(BURST_BYTES), "latency", f"{QUEUE_S * 1e3:.0f}ms")
                run("tc", "-n", space, "qdisc", "add", "dev", device, "root", "tbf", *shape)

    def _close(self) -> None:
        super()._close()
        delete(self._switch)
