"""One member's part in averaging, for what counts memory: the other member is a copy of what it sends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ravnest_p2p.core.rings import SegmentRound, deliver
from ravnest_p2p.training import averaging
from ravnest_p2p.training.stage import StageTrainer


class Mirror:
    """A member that holds the same, and keeps nothing."""

    def __init__(self, values: averaging.SegmentValues) -> None:
        self._values = values

    def part(self, chunk: int, share: float) -> averaging.Chunk:
        return self._values.part(chunk, share)

    def add(self, chunk: int, share: float, sums: Sequence[averaging.Chunk]) -> averaging.Chunk:
        return self._values.add(chunk, share, sums)

    def hold(self, chunk: int, mean: averaging.Chunk) -> averaging.Chunk:
        return mean


def average(trainer: StageTrainer) -> None:
    """All parameters in a ring of two, in the memory that a worker takes for it; they stay as they are."""
    names = [*trainer.params]
    flat = averaging.gather(trainer.params, trainer.buffers, names)
    chunks = averaging.chunk_count(flat.numel(), 2)
    values = averaging.SegmentValues(flat, chunks)
    own = SegmentRound(0, [1, 1], chunks, values)
    other = SegmentRound(1, [1, 1], chunks, Mirror(values))
    while own.outcome is None:
        for sender, receiver in ((own, other), (other, own)):
            if (send := sender.next_for(receiver.rank)) is not None:
                payload = None if send.payload is None else send.payload.copy()
                deliver(receiver, sender.rank, replace(send, payload=payload))
    averaging.scatter(flat, trainer.params, trainer.buffers, names)
