"""TUN devices of namespaces, held by a process of ours that carries their packets.

TCP is as the system has it and sends what the internet's MTU allows, since how long a frame takes is for the
most part how TCP finds the line's rate; but the kernel cuts its segments no sooner than a network card would,
so that whole runs of them are carried at once and cost next to nothing.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import suppress

RUN_BYTES = 2**16
"""Of segments that are carried at once, at most."""

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x400454CA, 0x0001, 0x1000, 0x4000
_TUNSETOFFLOAD, _TUN_F_CSUM, _TUN_F_TSO4 = 0x400454D0, 0x01, 0x02
_CLONE_NEWNET = 0x40000000

_RUN_HEAD = struct.Struct("=BBHHHH")
"""Before each packet: flags, kind of run, bytes in its first piece of memory, payload of each segment, where
the TCP header begins, where its checksum is."""


def packets(device: int) -> Iterator[bytes]:
    """All that can be read at once."""
    with suppress(BlockingIOError):
        while True:
            yield os.read(device, 2 * RUN_BYTES)


def receiver(packet: bytes) -> bytes:
    """The address that it is for; empty where it is no IPv4."""
    at = _RUN_HEAD.size
    return packet[at + 16 : at + 20] if packet[at] >> 4 == 4 else b""


def wire_bytes(packet: bytes, frame_bytes: int) -> int:
    """What all segments of a run take on a line, with their headers and that of each frame around them."""
    _, kind, _, segment, tcp_at, _ = _RUN_HEAD.unpack_from(packet)
    size, segments, headers = len(packet) - _RUN_HEAD.size, 1, 0
    if kind:
        headers = tcp_at + (packet[_RUN_HEAD.size + tcp_at + 12] >> 4) * 4
        segments = -(-(size - headers) // segment)
    return size + (segments - 1) * headers + segments * frame_bytes


def open_device(namespace: str, name: str) -> int:
    """A namespace's device; this process is in that namespace afterwards.

    Raises:
        OSError: no such namespace or device.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{namespace}") as there:
        if libc.setns(there.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {namespace}")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(
        device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR)
    )
    fcntl.ioctl(device, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4)
    return device
