"""Our side: a real swarm of two peers trains the model in two stages; its own timeline says how fast.

`python -m benchmarks.pipelines.ours M UPDATES HOSTS [PICTURE]`: HOSTS is JSON, [[address, [command prefix…]],
…] of the two peers; runs where the first of them does. PICTURE is an SVG file for the last seconds of the
timeline. Measured from the first update's end to the last one's, as the other sides are.
Prints {"microbatches", "seconds", …}.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ravnest_p2p as rn
from benchmarks.pipelines import gpt
from ravnest_p2p.core.pipeline.timeline import MICRO, StageTimeline
from ravnest_p2p.testing.local_swarm import Host, LocalSwarm, wait_until

MEMORY = "3GB"
EPOCH_S = 900
START_S = 120.0
PICTURE_S = 3.5


class Gpt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        (self.layers,) = gpt.chunks(1)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.layers(tokens)
        return logits


def main() -> None:
    m, updates = int(sys.argv[1]), int(sys.argv[2])
    hosts = [Host(address, tuple(prefix)) for address, prefix in json.loads(sys.argv[3])]
    torch.set_num_threads(1)
    # More updates than are measured: what a job does at its end is no part of it.
    request = rn.JobRequest(
        model=Gpt(),
        data=gpt.text(m * gpt.MICROBATCH * (updates + 3)),
        loss=gpt.loss,
        optimizer=rn.AdamW(lr=gpt.LEARNING_RATE, weight_decay=gpt.WEIGHT_DECAY),
        passes=1,
        microbatch_size=gpt.MICROBATCH,
        microbatches_per_update=m,
        updates_per_round=updates + 3,
        staleness_bound=m,
        stages=2,
        clusters=1,
    )
    with tempfile.TemporaryDirectory(prefix="pipeline-") as folder:
        swarm = LocalSwarm(Path(folder), 2, memory=MEMORY, hosts=hosts, more=["--epoch", str(EPOCH_S)])
        with swarm, rn.connect(swarm.bootstrap.address) as connection:
            lending = lambda: sum(1 for peer in connection.peers() if peer["memory_bytes"]) == 2  # noqa: E731
            wait_until(lending, START_S, "both peers have measured themselves")
            job = connection.submit_request(request)
            print(json.dumps(_measured(job, updates, *sys.argv[4:])))


def _measured(job: Any, updates: int, picture: str | None = None) -> dict[str, Any]:
    """Wait for one more update than is measured, and read the timeline."""
    while True:
        progress = job.status()
        stages = progress.clusters[0].stages if progress.clusters else ()
        if progress.over:
            raise RuntimeError(f"the job ended as {progress.phase.value}: {progress.reason}")
        if stages and min(stage.version for stage in stages) > updates:
            break
        time.sleep(0.5)
    timelines = job.trace(1e5).stages
    if picture is not None:
        Path(picture).write_text(job.trace(PICTURE_S).svg())
    job.cancel()
    first = timelines[0]
    ends_us = [span.end_us for span in first.operations if span.kind == "|"][: updates + 1]
    inside = [s for s in first.operations if s.kind == "B" and ends_us[0] < s.end_us <= ends_us[-1]]
    return {
        "microbatches": len(inside),
        "seconds": (ends_us[-1] - ends_us[0]) / MICRO,
        "busy": [_busy(timeline, ends_us[0], ends_us[-1]) for timeline in timelines],
        "layers": [[stage.lo, stage.hi] for stage in stages],
        "staleness": stages[0].staleness_bound,
    }


def _busy(timeline: StageTimeline, begin_us: int, end_us: int) -> float:
    """Share of the time that the stage's compute thread worked."""
    inside = [s for s in timeline.operations if begin_us <= s.start_us and s.end_us <= end_us]
    return sum(span.duration_us for span in inside) / (end_us - begin_us)


if __name__ == "__main__":
    main()
