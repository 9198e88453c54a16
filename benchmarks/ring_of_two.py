"""One member's part in averaging, for what counts memory: the other member is a copy of what it sends."""

from __future__ import annotations

from ravnest_p2p.core.rings import RingRound
from ravnest_p2p.training import averaging
from ravnest_p2p.training.stage import StageTrainer


def average(trainer: StageTrainer) -> None:
    """All parameters in a ring of two, in the memory that a worker takes for it; they stay as they are."""
    names = [*trainer.params]
    ring = RingRound(0, 2, [1, 1])
    flat = averaging.weighted(averaging.gather(trainer.params, trainer.buffers, names), ring.scale)
    chunks = averaging.cut(flat, ring.size)
    ring.start()
    for step, (chunk, take) in enumerate(((1, averaging.accumulate), (0, averaging.replace))):
        arrived = chunks[chunk].clone()
        if take is averaging.replace:
            arrived.mul_(ring.size)
        ring.chunk_received(step, chunk)
        take(chunks[chunk], averaging.view(arrived))
    averaging.scatter(flat, trainer.params, trainer.buffers, names)
