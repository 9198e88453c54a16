"""Both halves of a resumable stream: credit, receipts, resuming, and hostile numbers."""

from __future__ import annotations

import pytest

from ravnest_p2p.core.delivery import Inbox, Outbox, Verdict
from ravnest_p2p.core.errors import FrameSequenceError, OurFault


def test_credit_in_frames_and_bytes() -> None:
    outbox = Outbox(max_frames=3, max_bytes=100)
    assert [outbox.push(40), outbox.push(50)] == [0, 1]
    assert outbox.held_bytes == 90
    assert not outbox.can_send(11)
    assert outbox.push(10) == 2
    assert not outbox.can_send(0)
    with pytest.raises(OurFault, match="no credit"):
        outbox.push(0)
    assert list(outbox.acknowledge(1)) == [0]
    assert outbox.held_bytes == 60
    assert outbox.can_send(40)
    assert not outbox.can_send(41)


def test_a_frame_that_never_fits_is_said_at_once() -> None:
    for size in (101, -1):
        with pytest.raises(OurFault, match="never fits"):
            Outbox(3, 100).can_send(size)
    for credit in ((0, 1), (1, 0)):
        with pytest.raises(OurFault):
            Outbox(*credit)


def test_resume_sends_again_what_was_not_received() -> None:
    outbox = Outbox(8, 800)
    for _ in range(5):
        outbox.push(100)
    assert outbox.resume(2) == range(2, 5)
    assert outbox.resume(2) == range(2, 5)
    assert outbox.held_bytes == 300
    assert outbox.push(1) == 5
    assert outbox.resume(6) == range(6, 6)


@pytest.mark.parametrize("hostile", [4, 1, 0, -1, 1 << 80])
def test_hostile_receipts_are_refused_and_change_nothing(hostile: int) -> None:
    outbox = Outbox(8, 800)
    for _ in range(3):
        outbox.push(100)
    outbox.acknowledge(2)
    for answer in (outbox.acknowledge, outbox.resume):
        with pytest.raises(FrameSequenceError):
            answer(hostile)
    assert outbox.unacknowledged == range(2, 3)
    assert outbox.held_bytes == 100
    assert list(outbox.acknowledge(2)) == []


def test_each_frame_is_delivered_once() -> None:
    inbox = Inbox()
    assert [inbox.accept(seq) for seq in (0, 1, 0, 1, 2)] == [
        Verdict.DELIVER,
        Verdict.DELIVER,
        Verdict.DUPLICATE,
        Verdict.DUPLICATE,
        Verdict.DELIVER,
    ]
    assert inbox.next_expected == 3


@pytest.mark.parametrize("seq", [2, -1, 1 << 80])
def test_a_gap_is_refused_and_changes_nothing(seq: int) -> None:
    inbox = Inbox()
    inbox.accept(0)
    with pytest.raises(FrameSequenceError, match="1 was expected"):
        inbox.accept(seq)
    assert inbox.accept(1) is Verdict.DELIVER


def test_a_receipt_is_due_after_frames_bytes_or_a_repeat() -> None:
    inbox = Inbox(receipt_frames=3, receipt_bytes=100)
    assert inbox.receipt() is None
    assert inbox.receipt(flush=True) is None
    inbox.accept(0, 10)
    assert inbox.receipt() is None
    assert inbox.receipt(flush=True) == 1
    inbox.accept(1, 100)
    assert inbox.receipt() == 2
    for seq in (2, 3):
        inbox.accept(seq, 1)
        assert inbox.receipt() is None
    inbox.accept(4, 1)
    assert inbox.receipt() == 5
    assert inbox.receipt() is None
    inbox.accept(4, 1)
    assert inbox.receipt() == 5
