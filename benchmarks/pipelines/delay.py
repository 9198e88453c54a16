"""Two network namespaces and a link between them that takes its time: real sockets, a real round trip.

Problem: this kernel cannot delay packets by itself. Solution: each namespace has a TUN device
(`benchmarks.tun`), and one process of ours carries packets from one to the other, each after the same delay.
Only packets between the two namespaces pass.

A side that takes turns (`pipelines.turns`) has a link that stands with it: time stands for packets underway,
TCP waits for longer than a stop before it sends again, and finds its rate by packets and not by the clock.

Needs linux, root and iproute2.
"""

from __future__ import annotations

import os
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable
from itertools import count
from multiprocessing import get_context

from benchmarks.namespaces import Net, ip
from benchmarks.tun import open_device, packets

DEVICE = "delayed"

TICK_S, STOPPED_S = 0.1, 0.5
"""How often the carrier looks at the clock at least; it was stopped where it did not for so long."""

GATHERED_S = 0.001
"""Packets of so long are carried together, since each time that the carrier wakes is taken from the sides."""

STANDS = ("rto_min", "120s", "congctl", "cubic")
"""TCP of a link that stands at times. It waits for longer than a side does while another begins; no packet is
ever lost here. BBR measures the line's rate by the clock and would count the stops."""


class DelayedLink(Net):
    """Two hosts.

    Args:
        one_way_s: of every packet, and up to two milliseconds more.
        stands: its side takes turns.
    """

    _number = count()

    def __init__(self, one_way_s: float, *, stands: bool = False) -> None:
        self._options = STANDS if stands else ()
        number = next(self._number)
        names = [f"delay-{os.getpid()}-{number}{end}" for end in "ab"]
        super().__init__(names, ["11.0.0.1", "11.0.0.2"])
        self._carrier = get_context("spawn").Process(
            target=_carry, args=(os.getpid(), self._names, one_way_s), daemon=True
        )

    @property
    def pid(self) -> int:
        """Of the process that carries the packets."""
        assert self._carrier.pid is not None, "inside only"
        return self._carrier.pid

    def _join(self) -> None:
        for name, own, other in zip(self._names, self._addresses, self._addresses[::-1], strict=True):
            inside = ("-n", name)
            ip(*inside, "tuntap", "add", DEVICE, "mode", "tun")
            ip(*inside, "address", "add", own, "peer", other, "dev", DEVICE)
            ip(*inside, "link", "set", "dev", DEVICE, "up")
            ip(*inside, "route", "change", other, "dev", DEVICE, "src", own, *self._options)
        self._carrier.start()

    def _close(self) -> None:
        if self._carrier.pid is not None:
            # It may be stopped.
            self._carrier.kill()
            self._carrier.join()
        super()._close()


class RunClock:
    """Seconds that this process ran; it has to look often enough to tell that it was stopped."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._looked_s, self._stopped_s = now(), 0.0

    def __call__(self) -> float:
        now_s = self._now()
        if now_s - self._looked_s > STOPPED_S:
            self._stopped_s += now_s - self._looked_s
        self._looked_s = now_s
        return now_s - self._stopped_s


def _carry(parent: int, names: list[str], one_way_s: float) -> None:
    """Carry packets both ways until told to end, or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    devices = [open_device(name, DEVICE) for name in names]
    waiting: deque[tuple[float, int, bytes]] = deque()
    clock = RunClock()
    with selectors.DefaultSelector() as selector:
        for end, device in enumerate(devices):
            selector.register(device, selectors.EVENT_READ, devices[1 - end])
        while os.getppid() == parent:
            while waiting and waiting[0][0] <= clock():
                _, device, packet = waiting.popleft()
                os.write(device, packet)
            pause_s = waiting[0][0] - clock() if waiting else TICK_S
            for key, _ in selector.select(min(max(0.0, pause_s), TICK_S)):
                waiting.extend((clock() + one_way_s, key.data, packet) for packet in packets(key.fd))
                time.sleep(GATHERED_S)
