"""Any breaking, repeating link delivers each payload once and in order, within its credit."""

from __future__ import annotations

import math
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ravnest_p2p.core.delivery import Inbox, Outbox, Verdict
from ravnest_p2p.testing.clock import VirtualClock
from ravnest_p2p.testing.lossy_link import Faults, LossyLink


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 60),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.1, 0.4]),
    st.sampled_from([0.0, 0.5]),
    st.floats(0, 3),
    st.integers(0, 1 << 30),
)
def test_a_breaking_link_delivers_in_order(
    payloads: int, credit: int, breaks: float, repeats: float, jitter_s: float, seed: int
) -> None:
    clock = VirtualClock()
    got: list[int] = []
    link: LossyLink[int] = LossyLink(
        clock, random.Random(seed), 1.0, Faults(breaks, repeats, 2.0, jitter_s), credit, got.append
    )
    for i in range(payloads):
        clock.after(i / 4, link.send, i)
    clock.run_until(math.inf)
    assert got == list(range(payloads))


class ResumableStream(RuleBasedStateMachine):
    """Every order of sends, arrivals, losses and reconnects, against a plain list of what was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.outbox = Outbox(max_frames=4, max_bytes=50)
        self.inbox = Inbox(receipt_frames=2, receipt_bytes=20)
        self.sizes: list[int] = []
        self.forgotten = 0
        self.delivered = 0
        self.wire: list[int] = []
        self.receipts: list[int] = []

    @rule(size=st.integers(0, 50))
    def send(self, size: int) -> None:
        if self.outbox.can_send(size):
            assert self.outbox.push(size) == len(self.sizes)
            self.wire.append(len(self.sizes))
            self.sizes.append(size)

    @precondition(lambda self: self.wire)
    @rule(repeat=st.booleans(), flush=st.booleans())
    def arrive(self, repeat: bool, flush: bool) -> None:
        seq = self.wire[0] if repeat else self.wire.pop(0)
        expected = Verdict.DELIVER if seq == self.delivered else Verdict.DUPLICATE
        assert seq <= self.delivered
        assert self.inbox.accept(seq, self.sizes[seq]) is expected
        self.delivered += expected is Verdict.DELIVER
        receipt = self.inbox.receipt(flush=flush)
        if receipt is not None:
            self.receipts.append(receipt)

    @precondition(lambda self: self.receipts)
    @rule()
    def receive_receipt(self) -> None:
        for seq in self.outbox.acknowledge(self.receipts.pop(0)):
            assert seq == self.forgotten < self.delivered
            self.forgotten += 1

    @rule()
    def reconnect(self) -> None:
        self.receipts.clear()
        self.wire = list(self.outbox.resume(self.inbox.next_expected))
        self.forgotten = self.delivered
        assert self.wire == list(range(self.delivered, len(self.sizes)))

    @invariant()
    def holds_what_is_not_acknowledged_within_credit(self) -> None:
        held = self.outbox.unacknowledged
        assert held == range(self.forgotten, len(self.sizes))
        assert len(held) <= 4
        assert self.outbox.held_bytes == sum(self.sizes[seq] for seq in held) <= 50


TestResumableStream = ResumableStream.TestCase
TestResumableStream.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
