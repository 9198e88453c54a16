"""Two network namespaces and a link between them that takes its time: real sockets, a real round trip.

Problem: this kernel cannot delay packets by itself. Solution: each namespace has a TUN device, and one
process of ours carries packets from one to the other, each after the same delay. Packets are as large as TCP
may make them, so that the carrying costs next to nothing. Only packets between the two namespaces pass.

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
from multiprocessing import get_context
from types import TracebackType

from ravnest_p2p.testing.local_swarm import Host

MTU_BYTES = 65_000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000
DEVICE = "delayed"


class DelayedLink:
    """A context manager that gives the two hosts.

    Args:
        one_way_s: of every packet.
    Raises:
        OSError: not root, or no TUN devices.
        subprocess.CalledProcessError: iproute2 refused.
    """

    def __init__(self, one_way_s: float) -> None:
        self._one_way_s = one_way_s
        self._names = [f"delay-{os.getpid()}-{end}" for end in "ab"]
        # Public-looking, since go-libp2p believes no other address; the namespaces lead nowhere else.
        self._addresses = ["11.0.0.1", "11.0.0.2"]
        self._carrier = get_context("spawn").Process(
            target=_carry, args=(os.getpid(), self._names, one_way_s), daemon=True
        )

    def __enter__(self) -> tuple[Host, Host]:
        try:
            for name, own, other in zip(self._names, self._addresses, self._addresses[::-1], strict=True):
                _ip("netns", "add", name)
                inside = ("-n", name)
                _ip(*inside, "tuntap", "add", DEVICE, "mode", "tun")
                _ip(*inside, "address", "add", own, "peer", other, "dev", DEVICE)
                _ip(*inside, "link", "set", "dev", DEVICE, "mtu", str(MTU_BYTES), "up")
                _ip(*inside, "link", "set", "dev", "lo", "up")
            self._carrier.start()
        except BaseException:
            self._close()
            raise
        hosts = [
            Host(address, ("ip", "netns", "exec", name))
            for name, address in zip(self._names, self._addresses, strict=True)
        ]
        return hosts[0], hosts[1]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._carrier.pid is not None:
            self._carrier.terminate()
            self._carrier.join()
        for name in self._names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def _carry(parent: int, names: list[str], one_way_s: float) -> None:
    """Carry packets both ways until told to end, or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    devices = [_open_device(name) for name in names]
    waiting: deque[tuple[float, int, bytes]] = deque()
    with selectors.DefaultSelector() as selector:
        for end, device in enumerate(devices):
            selector.register(device, selectors.EVENT_READ, devices[1 - end])
        while os.getppid() == parent:
            pause_s = waiting[0][0] - time.monotonic() if waiting else 1.0
            for key, _ in selector.select(max(0.0, pause_s)):
                waiting.append((time.monotonic() + one_way_s, key.data, os.read(key.fd, MTU_BYTES + 64)))
            while waiting and waiting[0][0] <= time.monotonic():
                _, device, packet = waiting.popleft()
                os.write(device, packet)


def _open_device(name: str) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{name}") as namespace:
        if libc.setns(namespace.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {name}")
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
    return device
