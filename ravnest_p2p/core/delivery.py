"""A stream that survives reconnects: every frame is delivered once, in order, with bounded memory.

Problem: a relayed circuit dies after half an hour or a few GiB, and an upgrade to a direct path resets its
streams, at any byte. Solution: frames carry a number, receipts say which number is expected next, and after
a reconnect the receiver's first word is that number, so that the sender knows what to send again. The bytes
stay with the caller; these two halves only decide.

    sender                                              receiver
    can_send(size)? seq = push(size) ─── frame seq ──▶  accept(seq, size): deliver, or drop a duplicate
    acknowledge(n): forget frames < n ◀── expects n ──  receipt(), when one is due
    resume(n): send these again    ◀─ reconnect, n ───  next_expected
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from ravnest_p2p.core.errors import FrameSequenceError, OurFault


@dataclass(slots=True, eq=False)
class Outbox:
    """The sending half: numbers frames from 0 and holds those that are not acknowledged.

    Args:
        max_frames, max_bytes: credit; no more than this is ever held.
    """

    max_frames: int
    max_bytes: int
    _sizes: deque[int] = field(default_factory=deque, init=False, repr=False)
    _first: int = field(default=0, init=False, repr=False)
    _held_bytes: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.max_frames < 1 or self.max_bytes < 1:
            raise OurFault(f"a stream needs credit, not {self}")

    @property
    def next_seq(self) -> int:
        """Number of the next new frame."""
        return self._first + len(self._sizes)

    @property
    def unacknowledged(self) -> range:
        """Numbers of the frames held."""
        return range(self._first, self.next_seq)

    @property
    def held_bytes(self) -> int:
        return self._held_bytes

    def can_send(self, size_bytes: int) -> bool:
        """Whether a frame of this size fits the credit now.

        Raises:
            OurFault: it never will.
        """
        if not 0 <= size_bytes <= self.max_bytes:
            raise OurFault(f"a frame of {size_bytes} bytes never fits a credit of {self.max_bytes}")
        return len(self._sizes) < self.max_frames and self._held_bytes + size_bytes <= self.max_bytes

    def push(self, size_bytes: int) -> int:
        """Take a new frame in and return its number; the caller keeps its bytes until acknowledged.

        Raises:
            OurFault: there is no credit for it.
        """
        if not self.can_send(size_bytes):
            raise OurFault(f"no credit for {size_bytes} bytes: {len(self._sizes)} frames are held")
        self._sizes.append(size_bytes)
        self._held_bytes += size_bytes
        return self.next_seq - 1

    def acknowledge(self, next_expected: int) -> range:
        """The receiver has every frame below `next_expected`; returns the numbers to forget.

        Raises:
            FrameSequenceError: it takes back an earlier receipt, or claims what was never sent.
        """
        if not self._first <= next_expected <= self.next_seq:
            raise FrameSequenceError(
                f"receipt for {next_expected}, where {self._first} to {self.next_seq} are possible"
            )
        released = range(self._first, next_expected)
        for _ in released:
            self._held_bytes -= self._sizes.popleft()
        self._first = next_expected
        return released

    def resume(self, next_expected: int) -> range:
        """A new connection begins with the receiver's `next_expected`; returns the numbers to send again.

        What the receiver has is acknowledged with it: forget frames below the range returned.

        Raises:
            FrameSequenceError: as `acknowledge`.
        """
        self.acknowledge(next_expected)
        return self.unacknowledged


class Verdict(str, Enum):
    """What to do with a frame that came in."""

    DELIVER = "deliver"
    DUPLICATE = "duplicate"


@dataclass(slots=True, eq=False)
class Inbox:
    """The receiving half: passes each frame on once, in order, and says when a receipt is due.

    Args:
        receipt_frames, receipt_bytes: a receipt is due after this much. At most half of the sender's credit,
            and with room for one more frame, or both sides wait for one another.
    """

    receipt_frames: int = 1
    receipt_bytes: int = 1 << 20
    _next: int = field(default=0, init=False, repr=False)
    _frames: int = field(default=0, init=False, repr=False)
    _bytes: int = field(default=0, init=False, repr=False)
    _repeat: bool = field(default=False, init=False, repr=False)

    @property
    def next_expected(self) -> int:
        """What a receipt, or the first word after a reconnect, says."""
        return self._next

    def accept(self, seq: int, size_bytes: int = 0) -> Verdict:
        """Judge a frame that came in.

        Raises:
            FrameSequenceError: it skips frames; a sender that obeys `next_expected` never does.
        """
        if seq > self._next or seq < 0:
            raise FrameSequenceError(f"frame {seq} came, where {self._next} was expected")
        if seq < self._next:
            self._repeat = True
            return Verdict.DUPLICATE
        self._next += 1
        self._frames += 1
        self._bytes += size_bytes
        return Verdict.DELIVER

    def receipt(self, *, flush: bool = False) -> int | None:
        """The receipt to send now, or None while none is due.

        Args:
            flush: send one for anything delivered since the last, as before a long silence.
        """
        due = self._repeat or self._frames >= self.receipt_frames or self._bytes >= self.receipt_bytes
        if not due and not (flush and self._frames):
            return None
        self._frames = self._bytes = 0
        self._repeat = False
        return self._next
