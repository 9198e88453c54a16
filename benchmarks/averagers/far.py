"""Hosts far from one another: each with a line of a given rate, and a delay between any two.

Problem: `net.ShapedNet` has rates and no delay, since this kernel cannot delay packets by itself. Solution:
each host's device is a TUN device (`benchmarks.tun`), and one process carries all packets: through the
sender's line, whose queue is bounded, over the way between, and through the receiver's line, whose queue is
bounded as well. What finds a queue full is lost, with all segments of its run.

Needs linux, root and iproute2.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import count
from multiprocessing import get_context
from multiprocessing.synchronize import Event

from benchmarks.averagers.lines import Line
from benchmarks.averagers.net import DEVICE
from benchmarks.namespaces import TCP, Net, ip
from benchmarks.tun import open_device, packets, receiver, wire_bytes

FRAME_BYTES = 14
"""Of Ethernet, around each packet: counted as `ShapedNet` counts it."""

GATHERED_S = 0.0005
"""Packets of so long are carried together, since each time that the carrier wakes is taken from the hosts."""

START_S = 60.0
"""What a process of Python may take to begin, beside others that do."""

LOOK_S = 0.5
"""How often the carrier looks at least whether its parent is alive."""


class FarNet(Net):
    """Args:
    rates_bps: of each host's line, up and down alike; of the bits of whole packets.
    one_way_s: between any two, besides what lines and queues take. A queue takes what a line carries in
        the round trip.
    """

    _number = count()

    def __init__(self, rates_bps: Sequence[float], one_way_s: float) -> None:
        name = f"far-{os.getpid()}-{next(self._number)}"
        numbers = range(len(rates_bps))
        super().__init__([f"{name}-{n}" for n in numbers], [f"11.2.0.{n + 1}" for n in numbers])
        context = get_context("spawn")
        self._carries = context.Event()
        self._carrier = context.Process(
            target=_carry,
            args=(self._carries, os.getpid(), self._names, self._addresses, list(rates_bps), one_way_s),
            daemon=True,
        )

    def _join(self) -> None:
        for name, address in zip(self._names, self._addresses, strict=True):
            ip("-n", name, "tuntap", "add", DEVICE, "mode", "tun")
            ip("-n", name, "address", "add", f"{address}/24", "dev", DEVICE)
            ip("-n", name, "link", "set", DEVICE, "up")
            ip("-n", name, "route", "change", "11.2.0.0/24", "dev", DEVICE, "src", address, *TCP)
        self._carrier.start()
        if not self._carries.wait(START_S):
            raise OSError(f"nobody carries packets after {START_S:g} s")

    def _close(self) -> None:
        if self._carrier.pid is not None:
            self._carrier.kill()
            self._carrier.join()
        super()._close()


def _carry(
    carries: Event,
    parent: int,
    names: list[str],
    addresses: list[str],
    rates_bps: list[float],
    one_way_s: float,
) -> None:
    """Carry packets until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A network waits for no process.
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    devices = [open_device(name, DEVICE) for name in names]
    place = {socket.inet_aton(address): n for n, address in enumerate(addresses)}
    up, down = ([Line(rate, 2 * one_way_s) for rate in rates_bps] for _ in range(2))
    underway: list[tuple[float, int, int, int, bytes]] = []
    number = count()
    poll = select.poll()
    sender = {device: n for n, device in enumerate(devices)}
    for device in devices:
        poll.register(device, select.POLLIN)
    carries.set()
    while os.getppid() == parent:
        pause_s = min(underway[0][0] - time.monotonic(), LOOK_S) if underway else LOOK_S
        ready = poll.poll(max(0.0, 1e3 * pause_s))
        now_s = time.monotonic()
        for device, _ in ready:
            for packet in packets(device):
                to, size = place.get(receiver(packet)), wire_bytes(packet, FRAME_BYTES)
                if to is not None and (sent_s := up[sender[device]].through(now_s, size)) is not None:
                    heappush(underway, (sent_s + one_way_s, next(number), to, size, packet))
        while underway and underway[0][0] <= now_s:
            at_s, _, to, size, packet = heappop(underway)
            if not size:
                os.write(devices[to], packet)
            elif (taken_s := down[to].through(at_s, size)) is not None:
                heappush(underway, (taken_s, next(number), to, 0, packet))
        time.sleep(GATHERED_S)
