"""Training beside rounds of averaging: a real swarm, two clusters of two stages, on lines of a given rate.

`python -m benchmarks.averagers.training MODE ROUNDS HOSTS`: MODE is the job's `overlap`, HOSTS is JSON,
[[address, [command prefix…]], …] of the four peers; runs where the first of them does. Measured from the
end of the first round to that of the last but one, by each cluster's first stage. Prints a line of JSON for
each cluster: {"rounds", "beside", "apart", "round s", "bps", "stood", "rate"}: micro-batches a second while
a round goes on and while none does, what a round takes and sends a second, the share of the time in which
training stood, and micro-batches a second of all that time.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

import ravnest_p2p as rn
from benchmarks.pipelines import gpt
from benchmarks.pipelines.ours import Gpt
from ravnest_p2p.core.pipeline.timeline import MICRO, StageTimeline
from ravnest_p2p.testing.local_swarm import Host, LocalSwarm

MEMORY = "4GB"
EPOCH_S = 900
CLUSTERS, M, KAPPA = 2, 4, 6
POLL_S = 2.0


def main() -> None:
    mode, rounds = sys.argv[1], int(sys.argv[2])
    hosts = [Host(address, tuple(prefix)) for address, prefix in json.loads(sys.argv[3])]
    torch.set_num_threads(1)
    size = gpt.SIZES["11M"]
    request = rn.JobRequest(
        model=Gpt(size),
        data=gpt.text(size, M * KAPPA * CLUSTERS * rounds),
        loss=gpt.loss,
        optimizer=rn.AdamW(lr=gpt.LEARNING_RATE, weight_decay=gpt.WEIGHT_DECAY),
        passes=1,
        microbatch_size=size.sequences,
        microbatches_per_update=M,
        updates_per_round=KAPPA,
        stages=2,
        clusters=CLUSTERS,
        overlap=mode,
    )
    with tempfile.TemporaryDirectory(prefix="overlap-") as folder:
        more = ["--epoch", str(EPOCH_S)]
        with LocalSwarm(Path(folder), len(hosts), memory=MEMORY, hosts=hosts, more=more) as swarm:
            for timeline in _trained(swarm, request):
                print(json.dumps(_measured(timeline)))


def _trained(swarm: LocalSwarm, request: rn.JobRequest) -> list[StageTimeline]:
    """The first stages of a job that ended."""
    with rn.connect(swarm.peers[0].address) as connection:
        job = connection.submit_request(request)
        while not (progress := job.status()).over:
            print(f"{progress.batches_done} of {progress.total_batches}", file=sys.stderr, flush=True)
            time.sleep(POLL_S)
        if progress.phase.value != "done":
            raise RuntimeError(f"the job ended as {progress.phase.value}: {progress.reason}")
        return [stage for stage in job.trace(1e5).stages if stage.stage == 0]


def _measured(timeline: StageTimeline) -> dict[str, Any]:
    rounds = sorted((s for s in timeline.spans if s.kind == ">r"), key=lambda s: s.end_us)[:-1]
    ends_us = [s.end_us for s in timeline.operations if s.kind == "B"]
    beside_us, apart_us, beside, apart = 0, 0, 0.0, 0.0
    for before, this in pairwise(rounds):
        apart_us += max(0, this.start_us - before.end_us)
        apart += max(0.0, _done(ends_us, this.start_us) - _done(ends_us, before.end_us))
        beside_us += this.duration_us
        beside += _done(ends_us, this.end_us) - _done(ends_us, this.start_us)
    first, last = rounds[0].end_us, rounds[-1].end_us
    stood = [s for s in timeline.operations if s.kind == "A" and first < s.end_us <= last]
    return {
        "rounds": len(rounds) - 1,
        "beside": beside * MICRO / beside_us,
        "apart": apart * MICRO / apart_us if apart_us else 0.0,
        "round s": statistics.median(s.duration_us for s in rounds[1:]) / MICRO,
        "bps": statistics.median(8 * s.bytes * MICRO / s.duration_us for s in rounds[1:]),
        "stood": sum(s.duration_us for s in stood) / (last - first),
        "rate": (_done(ends_us, last) - _done(ends_us, first)) * MICRO / (last - first),
    }


def _done(ends_us: Sequence[int], at_us: int) -> float:
    """Micro-batches that are done at a time, with the part of the one underway."""
    n = bisect_right(ends_us, at_us)
    if not 0 < n < len(ends_us):
        return float(n)
    return n + (at_us - ends_us[n - 1]) / (ends_us[n] - ends_us[n - 1])


if __name__ == "__main__":
    main()
