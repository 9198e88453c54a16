"""Two network namespaces and a link between them that takes its time: real sockets, a real round trip.

Problem: this kernel cannot delay packets by itself. Solution: each namespace has a TUN device, and one
process of ours carries packets from one to the other, each after the same delay. TCP is as the system has it
and sends what the internet's MTU allows, since how long a frame takes is for the most part how TCP finds the
line's rate; but the kernel cuts its segments no sooner than a network card would, so that whole runs of them
are carried at once and cost next to nothing. Only packets between the two namespaces pass.

A side that takes turns (`pipelines.turns`) has a link that stands with it: time stands for packets underway,
TCP waits for longer than a stop before it sends again, and finds its rate by packets and not by the clock.

Needs linux, root and iproute2.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import selectors
import signal
import struct
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from multiprocessing import get_context
from types import TracebackType

from ravnest_p2p.testing.local_swarm import Host

RUN_BYTES = 2**16
"""Of segments that are carried at once, at most."""

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x400454CA, 0x0001, 0x1000, 0x4000
_TUNSETOFFLOAD, _TUN_F_CSUM, _TUN_F_TSO4 = 0x400454D0, 0x01, 0x02
_CLONE_NEWNET = 0x40000000
DEVICE = "delayed"

TICK_S, STOPPED_S = 0.1, 0.5
"""How often the carrier looks at the clock at least; it was stopped where it did not for so long."""

GATHERED_S = 0.001
"""Packets of so long are carried together, since each time that the carrier wakes is taken from the sides."""

STANDS = ("rto_min", "120s", "congctl", "cubic")
"""TCP of a link that stands at times. It waits for longer than a side does while another begins; no packet is
ever lost here. BBR measures the line's rate by the clock and would count the stops."""


class DelayedLink:
    """A context manager; its two hosts are there inside.

    Args:
        one_way_s: of every packet, and up to two milliseconds more.
        stands: its side takes turns.
    Raises:
        OSError: not root, or no TUN devices.
        subprocess.CalledProcessError: iproute2 refused.
    """

    _number = count()

    def __init__(self, one_way_s: float, *, stands: bool = False) -> None:
        self._options = STANDS if stands else ()
        number = next(self._number)
        self._names = [f"delay-{os.getpid()}-{number}{end}" for end in "ab"]
        # Public-looking, since go-libp2p believes no other address; the namespaces lead nowhere else.
        self._addresses = ["11.0.0.1", "11.0.0.2"]
        self._carrier = get_context("spawn").Process(
            target=_carry, args=(os.getpid(), self._names, one_way_s), daemon=True
        )

    @property
    def hosts(self) -> tuple[Host, Host]:
        first, second = (
            Host(address, ("ip", "netns", "exec", name))
            for name, address in zip(self._names, self._addresses, strict=True)
        )
        return first, second

    @property
    def pid(self) -> int:
        """Of the process that carries the packets."""
        assert self._carrier.pid is not None, "inside only"
        return self._carrier.pid

    def __enter__(self) -> DelayedLink:
        try:
            for name, own, other in zip(self._names, self._addresses, self._addresses[::-1], strict=True):
                _ip("netns", "add", name)
                inside = ("-n", name)
                _ip(*inside, "tuntap", "add", DEVICE, "mode", "tun")
                _ip(*inside, "address", "add", own, "peer", other, "dev", DEVICE)
                _ip(*inside, "link", "set", "dev", DEVICE, "up")
                _ip(*inside, "link", "set", "dev", "lo", "up")
                _ip(*inside, "route", "change", other, "dev", DEVICE, "src", own, *self._options)
            self._carrier.start()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._carrier.pid is not None:
            # It may be stopped.
            self._carrier.kill()
            self._carrier.join()
        for name in self._names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


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


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def _carry(parent: int, names: list[str], one_way_s: float) -> None:
    """Carry packets both ways until told to end, or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    devices = [_open_device(name) for name in names]
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
                waiting.extend((clock() + one_way_s, key.data, packet) for packet in _arrived(key.fd))
                time.sleep(GATHERED_S)


def _arrived(device: int) -> Iterator[bytes]:
    """All packets that can be read at once."""
    with suppress(BlockingIOError):
        while True:
            yield os.read(device, 2 * RUN_BYTES)


def _open_device(name: str) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{name}") as namespace:
        if libc.setns(namespace.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {name}")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(
        device, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR)
    )
    fcntl.ioctl(device, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4)
    return device
