"""Lines with a rate and a delay: what a packet takes on them, and what averaging over them is held to."""

from __future__ import annotations

import socket
import struct

import pytest

from benchmarks.averagers.lines import Line
from benchmarks.averaging import Case, faster
from benchmarks.tun import receiver, wire_bytes

HEADERS = 20 + 32
"""Of IPv4 and of TCP with time stamps."""


def _packet(payload_bytes: int, segment_bytes: int = 0) -> bytes:
    """As a TUN device has it; a run of segments where they have a size."""
    before = struct.pack("=BBHHHH", 1, 1 if segment_bytes else 0, 128, segment_bytes, 20, 16)
    ip = bytes([0x45]) + bytes(11) + socket.inet_aton("11.2.0.1") + socket.inet_aton("11.2.0.2")
    tcp = bytes(12) + bytes([8 << 4]) + bytes(19)
    return before + ip + tcp + bytes(payload_bytes)


def test_a_line_sends_one_packet_after_another() -> None:
    line = Line(rate_bps=8000, queue_s=1.0)
    assert line.through(10.0, 500) == pytest.approx(10.5)
    assert line.through(10.1, 500) == pytest.approx(11.0)
    assert line.through(20.0, 500) == pytest.approx(20.5)


def test_a_line_drops_what_would_wait_for_longer_than_its_queue() -> None:
    line = Line(rate_bps=8000, queue_s=1.0)
    assert [line.through(0.0, 1000) for _ in range(3)] == [1.0, 2.0, None]
    assert line.through(1.5, 1000) == pytest.approx(3.0)


def test_each_segment_of_a_run_takes_its_own_headers_and_frame() -> None:
    assert wire_bytes(_packet(1000), 14) == HEADERS + 1000 + 14
    assert wire_bytes(_packet(2000, 1000), 14) == 2 * (HEADERS + 1000 + 14)
    assert wire_bytes(_packet(2001, 1000), 14) == 2 * (HEADERS + 1000 + 14) + HEADERS + 1 + 14


def test_a_packet_goes_to_its_receiver() -> None:
    assert receiver(_packet(1)) == socket.inet_aton("11.2.0.2")
    assert receiver(bytes(10) + bytes([0x60]) + bytes(39)) == b""


def test_both_rivals_have_to_take_a_fifth_longer() -> None:
    goals = faster(Case(3, 16e6), {"ours": 2.0, "gloo": 2.5, "hivemind": 2.3})
    assert [goal.holds for goal in goals] == [True, False]
