"""What a bundle may have underway, on a simulated line: soon all that it carries, and little more."""

from __future__ import annotations

import socket

import pytest

from ravnest_p2p.network.underway import LEAST_BYTES, LOOK_S, Counted, Underway, counted

RTT_S = 0.08


def most_underway(bps: float, seconds: float, pauses: range = range(0)) -> list[tuple[int, float]]:
    """What was underway, and what was delivered, look by look; the sender always has something to send."""
    bound, sent, found = Underway(), 0.0, []
    queue, arriving, acked = 0.0, [0.0] * round(RTT_S / LOOK_S), 0.0
    for tick in range(round(seconds / LOOK_S)):
        bound.look(tick * LOOK_S, [Counted(int(sent - acked), int(acked), RTT_S)])
        if tick not in pauses:
            room = max(0.0, bound.room)
            sent, queue, bound.room = sent + room, queue + room, bound.room - room
        through = min(queue, bps / 8 * LOOK_S)
        queue -= through
        arriving.append(through)
        acked += arriving.pop(0)
        found.append((int(sent - acked), acked))
    return found


@pytest.mark.parametrize("bps", [1e8, 1e9])
def test_the_line_is_full_after_some_round_trips_and_the_queue_short(bps: float) -> None:
    found = most_underway(bps, 4.0)
    carried = bps / 8 * RTT_S
    assert max(underway for underway, _ in found) < 1.8 * carried
    assert max(underway for underway, _ in found[400:]) < 1.3 * carried
    (_, early), (_, late) = found[399], found[-1]
    assert late - early > 0.97 * bps / 8 * (len(found) - 400) * LOOK_S


def test_a_pause_is_not_taken_for_a_slow_line() -> None:
    found = most_underway(1e8, 6.0, range(400, 900))
    (_, before), (_, after) = found[940], found[-1]
    assert after - before > 0.95 * 1e8 / 8 * (len(found) - 940) * LOOK_S


def test_a_slow_line_gets_what_may_always_be_underway() -> None:
    assert max(underway for underway, _ in most_underway(1e6, 4.0)[200:]) <= LEAST_BYTES


def test_a_system_that_counts_nothing_sets_no_bound() -> None:
    bound = Underway()
    bound.look(0.0, [])
    assert bound.room == float("inf")
    with socket.socket(socket.AF_UNIX) as other:
        assert counted(other) is None


def test_what_the_system_counts_of_a_connection() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as one,
    ):
        other, _ = server.accept()
        with other:
            one.sendall(bytes(10_000))
            assert len(other.recv(10_000, socket.MSG_WAITALL)) == 10_000
            found = counted(one)
    if found is not None:  # a system that tells
        assert found.acked >= 10_000
        assert found.underway == 0
        assert 0 < found.least_rtt_s < 1
