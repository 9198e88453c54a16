"""What a link remembers from one stream to the next: unacknowledged frames, arrived frames, receipts.

Problem: the two halves of `core.delivery` decide by numbers and sizes, and somebody has to keep the bytes
that belong to them and to bound what arrives faster than it is taken. Solution: one object without any
I/O that outlives the streams. It sends from a cursor, which a new stream sets back to what the receiver
lacks, and holds receipts back while the receiver's user is slow, so that the sender's credit runs out and
it waits.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from ravnest_p2p.core.delivery import Inbox, Outbox, Verdict
from ravnest_p2p.network.frames import HEAD_BYTES, Frame, Limits, Packed


@dataclass(frozen=True, slots=True)
class LinkLimits:
    """Bounds of one link; both ends should use the same.

    Attributes:
        frame: largest header and payload.
        window_frames, window_bytes: most that is sent and not yet acknowledged. At least one largest frame
            always fits. A receiver holds at most twice this, and one frame, that its user has not taken.
        connect_s: how long the first stream may take.
        resume_s: how long a lost link may take to come back.
        hello_s: how long an open stream may leave a hello unanswered.
        ping_s: a sign of life goes out this often.
        dead_s: without any byte for so long, the stream counts as lost.
        receipt_s: a receipt waits at most this long for a frame to ride on.
        strands: connections that a direct one may be made of (`network.bundle`), at most.
    """

    frame: Limits = field(default_factory=Limits)
    window_frames: int = 16
    window_bytes: int = 32 << 20
    connect_s: float = 20.0
    resume_s: float = 6.0
    hello_s: float = 3.0
    ping_s: float = 1.0
    dead_s: float = 4.0
    receipt_s: float = 0.02
    strands: int = 1

    @property
    def credit_bytes(self) -> int:
        largest = HEAD_BYTES + self.frame.max_header_bytes + self.frame.max_payload_bytes
        return max(self.window_bytes, largest)


class LinkState:
    """Both directions of one link, without I/O.

    Attributes:
        arrived: frames delivered and not yet taken, oldest first.
    """

    def __init__(self, limits: LinkLimits) -> None:
        self._limits = limits
        self._outbox = Outbox(limits.window_frames, limits.credit_bytes)
        self._inbox = Inbox(max(1, limits.window_frames // 4), max(1, limits.window_bytes // 4))
        self._held: deque[Packed] = deque()
        self._cursor = 0
        self._granted = 0
        self.arrived: deque[Frame] = deque()
        self._arrived_bytes = 0

    @property
    def next_expected(self) -> int:
        return self._inbox.next_expected

    @property
    def granted(self) -> int:
        """The last receipt; every frame that goes out repeats it."""
        return self._granted

    @property
    def owes_receipt(self) -> bool:
        """Frames arrived after the last receipt."""
        return self._inbox.next_expected > self._granted

    @property
    def unacknowledged(self) -> int:
        return len(self._held)

    @property
    def first_unacknowledged(self) -> int:
        """Number of the oldest frame held, or of the next one."""
        return self._outbox.unacknowledged.start

    @property
    def is_underway(self) -> bool:
        """Something went out on this stream and is not acknowledged."""
        return self._cursor > self.first_unacknowledged

    @property
    def has_unsent(self) -> bool:
        return self._cursor < self._outbox.next_seq

    def can_send(self, packed: Packed) -> bool:
        return self._outbox.can_send(packed.size_bytes)

    def push(self, packed: Packed) -> None:
        """Takes a frame that `can_send` admits."""
        self._outbox.push(packed.size_bytes)
        self._held.append(packed)

    def next_frame(self) -> tuple[int, Packed] | None:
        """Number and bytes of the next frame to put on the stream."""
        if not self.has_unsent:
            return None
        seq = self._cursor
        self._cursor += 1
        return seq, self._held[seq - self._outbox.unacknowledged.start]

    def acknowledge(self, next_expected: int) -> bool:
        """Forgets what the receiver has; true where that freed credit.

        Raises:
            FrameSequenceError: the receipt is impossible.
        """
        released = self._outbox.acknowledge(next_expected)
        for _ in released:
            self._held.popleft()
        self._cursor = max(self._cursor, next_expected)
        return bool(released)

    def resume(self, next_expected: int, *, moved: bool = False) -> None:
        """A new stream begins, whose other end lacks everything from `next_expected` on.

        Args:
            moved: that was said while an older stream still ran; later receipts on it count too.
        Raises:
            FrameSequenceError: that is impossible for this link.
        """
        if moved:
            next_expected = max(next_expected, self.first_unacknowledged)
        self.acknowledge(next_expected)
        self._cursor = next_expected
        self._granted = self._inbox.next_expected
        self._inbox.receipt(flush=True)

    def deliver(self, frame: Frame) -> bool:
        """Judges an arrived frame; true where it is new.

        Raises:
            FrameSequenceError: it skips frames.
        """
        if self._inbox.accept(frame.seq, frame.size_bytes) is not Verdict.DELIVER:
            return False
        self.arrived.append(frame)
        self._arrived_bytes += frame.size_bytes
        return True

    def take(self) -> Frame:
        """The oldest arrived frame."""
        frame = self.arrived.popleft()
        self._arrived_bytes -= frame.size_bytes
        return frame

    @property
    def is_full(self) -> bool:
        """More has arrived than an honest sender with this credit can make arrive in one stream."""
        return self._backlog(2)

    def receipt(self, *, flush: bool = False) -> int | None:
        """The receipt to send now, if one is due and the user keeps up."""
        if self._backlog(0.5):
            return None
        number = self._inbox.receipt(flush=flush)
        if number is not None:
            self._granted = number
        return number

    def _backlog(self, windows: float) -> bool:
        frames, size = self._limits.window_frames * windows, self._limits.credit_bytes * windows
        return len(self.arrived) > frames or self._arrived_bytes > size
