"""What a link remembers between streams, without any stream."""

import pytest

from ravnest_p2p.core.errors import FrameSequenceError
from ravnest_p2p.network.frames import Frame, FrameKind, Limits, pack
from ravnest_p2p.network.links_state import LinkLimits, LinkState

LIMITS = LinkLimits(frame=Limits(100, 1000), window_frames=4, window_bytes=2000)


def frame(seq: int, size: int = 10) -> Frame:
    return Frame(FrameKind.DATA, seq, 0, {}, bytearray(size))


def numbers(state: LinkState) -> list[int]:
    sent = []
    while (due := state.next_frame()) is not None:
        sent.append(due[0])
    return sent


def test_unacknowledged_frames_are_sent_again_from_where_the_other_end_lacks_them():
    state = LinkState(LIMITS)
    for n in range(4):
        assert state.can_send(pack({"n": n}))
        state.push(pack({"n": n}))
    assert not state.can_send(pack({}))
    assert numbers(state) == [0, 1, 2, 3]
    assert state.acknowledge(2)
    assert not state.acknowledge(2)
    state.resume(3)
    assert state.unacknowledged == 1
    assert state.next_frame() == (3, pack({"n": 3}))
    assert state.next_frame() is None


def test_impossible_positions_are_refused():
    state = LinkState(LIMITS)
    state.push(pack({}))
    for position in (2, -1):
        with pytest.raises(FrameSequenceError):
            state.resume(position)
    state.acknowledge(1)
    with pytest.raises(FrameSequenceError):
        state.acknowledge(0)


def test_a_position_said_before_later_receipts_does_not_take_them_back():
    state = LinkState(LIMITS)
    for n in range(4):
        state.push(pack({"n": n}))
    assert not state.is_underway
    assert numbers(state) == [0, 1, 2, 3]
    assert state.is_underway
    state.acknowledge(3)
    with pytest.raises(FrameSequenceError):
        state.resume(1)
    state.resume(1, moved=True)
    assert not state.is_underway
    assert numbers(state) == [3]
    state.resume(4, moved=True)
    assert not state.is_underway
    assert not state.has_unsent


def test_duplicates_are_dropped_and_gaps_refused():
    state = LinkState(LIMITS)
    assert [state.deliver(frame(n)) for n in (0, 1, 0, 1, 2)] == [True, True, False, False, True]
    with pytest.raises(FrameSequenceError):
        state.deliver(frame(4))
    assert [state.take().seq for _ in range(3)] == [0, 1, 2]


def test_receipts_are_held_back_while_the_user_is_slow():
    state = LinkState(LIMITS)
    for n in range(3):
        state.deliver(frame(n))
    assert state.receipt(flush=True) is None
    assert state.granted == 0
    assert state.owes_receipt
    state.take()
    assert state.receipt() == 3
    assert not state.owes_receipt


def test_a_largest_frame_always_fits_the_credit():
    limits = LinkLimits(frame=Limits(100, 1000), window_frames=4, window_bytes=10)
    assert LinkState(limits).can_send(pack({"pad": bytes(90)}, [bytes(1000)]))
