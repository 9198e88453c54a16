"""Our side: a real swarm of two peers trains the model in two stages; its own timeline says how fast.

`python -m benchmarks.pipelines.ours SIZE M UPDATES HOSTS [PICTURE | turns STALENESS [pinned]]`: HOSTS is
JSON, [[address, [command prefix…]], …] of the two peers; runs where the first of them does. PICTURE is an
SVG file for the last seconds of the timeline. A side that takes turns has a fixed staleness, since to be
stopped is no part of a way; pinned, each of its stages has a core of its own. Measured from the end of the
second update, until when a worker counts its tensors, to the last one's. Prints {"microbatches", "seconds",
"busy", "cpu", …}: `cpu` is each part's processor time over wall time.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

import ravnest_p2p as rn
from benchmarks.pipelines import gpt
from benchmarks.pipelines.turns import say_ready, told_to_end
from ravnest_p2p.core.pipeline.timeline import MICRO, StageTimeline
from ravnest_p2p.core.planning.cost import SPEED_TOLERANCE
from ravnest_p2p.testing.local_swarm import STOP_TIMEOUT_S, Host, LocalSwarm, wait_until

MEMORY = "8GB"
EPOCH_S = 900
START_S = 120.0
STARTS = 8
"""A core of a shared machine is at times slower than the other by a tenth, for seconds."""

PICTURE_S = 3.5
POLL_S = 4.0
"""Asking takes processor time of all peers."""

TOLD_S = 0.1
GAP_US = 1000
SETTLING, AFTER_S = 2, 16.0
"""Updates before the ones that are measured, and about how long it trains after them."""


class Gpt(nn.Module):
    def __init__(self, size: gpt.Size) -> None:
        super().__init__()
        (self.layers,) = gpt.chunks(size, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.layers(tokens)
        return logits


def main() -> None:
    size, m, updates = gpt.SIZES[sys.argv[1]], int(sys.argv[2]), int(sys.argv[3])
    hosts = [Host(address, tuple(prefix)) for address, prefix in json.loads(sys.argv[4])]
    picture = "".join(sys.argv[5:6])
    fixed = int(sys.argv[6]) if picture == "turns" else None
    torch.set_num_threads(1)
    # More updates than are measured: what a job does at its end is no part of it, and it is asked seldom.
    made = SETTLING + updates + math.ceil(AFTER_S / (m * size.microbatch_s))
    request = rn.JobRequest(
        model=Gpt(size),
        data=gpt.text(size, m * made),
        loss=gpt.loss,
        optimizer=rn.AdamW(lr=gpt.LEARNING_RATE, weight_decay=gpt.WEIGHT_DECAY),
        passes=1,
        microbatch_size=size.sequences,
        microbatches_per_update=m,
        updates_per_round=made,
        **({"staleness_bound": m} if fixed is None else {"staleness": "fixed", "staleness_bound": fixed}),
        stages=2,
        clusters=1,
    )
    with _swarm_of_equals(hosts) as swarm, rn.connect(swarm.peers[0].address) as connection:
        job = connection.submit_request(request)
        _wait_for(job, 1)
        # The peer that the others found one another by is no part of a swarm of two.
        swarm.bootstrap.interrupt()
        swarm.bootstrap.wait_ended(time.monotonic() + STOP_TIMEOUT_S)
        _wait_for(job, SETTLING)
        if "pinned" in sys.argv[7:]:
            _pin(swarm, job)
        print(json.dumps(_measured(swarm, job, m, updates, picture) if fixed is None else _marks(job)))


def _pin(swarm: LocalSwarm, job: Any) -> None:
    """Each stage on a core of its own, and always on the same: sides in turns differ by nothing else then."""
    cores = sorted(os.sched_getaffinity(0))
    for stage in _wait_for(job, 0):
        (worker,) = swarm.of(stage.peer).children("daemon.worker")
        for thread in worker.threads():
            os.sched_setaffinity(thread.id, {cores[stage.stage % len(cores)]})


@contextmanager
def _swarm_of_equals(hosts: list[Host]) -> Iterator[LocalSwarm]:
    """Two peers that measured the same speed, as two cores of one machine have; begun anew until they did."""
    for _ in range(STARTS):
        with tempfile.TemporaryDirectory(prefix="pipeline-") as folder:
            more = ["--epoch", str(EPOCH_S)]
            with LocalSwarm(Path(folder), 2, memory=MEMORY, hosts=hosts, more=more) as swarm:
                slower, faster = sorted(_speeds(swarm))
                if faster <= slower * (1 + SPEED_TOLERANCE):
                    yield swarm
                    return
    raise RuntimeError(f"the two peers measured speeds of {slower:.3g} and {faster:.3g} FLOP/s")


def _speeds(swarm: LocalSwarm) -> list[float]:
    """What both peers publish that they measured, floating-point operations a second."""
    with rn.connect(swarm.peers[0].address) as connection:
        lending = lambda: [peer["flops"] for peer in connection.peers() if peer["memory_bytes"]]  # noqa: E731
        wait_until(lambda: len(lending()) == 2, START_S, "both peers have measured themselves")
        return lending()


def _marks(job: Any) -> dict[str, Any]:
    """Take turns until told to end, then tell when each micro-batch was done."""
    say_ready()
    while not told_to_end():
        time.sleep(TOLD_S)
    (first, *_), stages = job.trace(1e5).stages, _wait_for(job, 0)
    job.cancel()
    ends_us = [s.end_us for s in first.operations if s.kind == "B"]
    return {
        "marks": [(end_us / MICRO, n) for n, end_us in enumerate(ends_us)],
        "layers": [[stage.lo, stage.hi] for stage in stages],
    }


def _measured(swarm: LocalSwarm, job: Any, m: int, updates: int, picture: str) -> dict[str, Any]:
    """Wait for one more update than is measured, and read the timeline."""
    begun_s, before = time.monotonic(), _cpu(swarm)
    stages = _wait_for(job, SETTLING + updates + 1)
    wall_s, after = time.monotonic() - begun_s, _cpu(swarm)
    timelines = job.trace(1e5).stages
    if picture:
        Path(picture).write_text(job.trace(PICTURE_S).svg())
    job.cancel()
    first = timelines[0]
    ends_us = [s.end_us for s in first.operations if s.kind == "|"][SETTLING - 1 : SETTLING + updates]
    inside = [s for s in first.operations if s.kind == "B" and ends_us[0] < s.end_us <= ends_us[-1]]
    crossing = [s.number // m for s in first.operations if s.kind == "f"]
    return {
        "microbatches": len(inside),
        "seconds": (ends_us[-1] - ends_us[0]) / MICRO,
        "busy": [_busy(timeline, ends_us[0], ends_us[-1]) for timeline in timelines],
        "between": [_between(timeline, ends_us[0], ends_us[-1]) for timeline in timelines],
        "cpu": {name: (after[name] - before[name]) / wall_s for name in after},
        "layers": [[stage.lo, stage.hi] for stage in stages],
        "staleness": crossing.count(SETTLING + updates - 1),
    }


def _wait_for(job: Any, version: int) -> Any:
    """The stages once all have made so many updates."""
    while True:
        progress = job.status()
        stages = progress.clusters[0].stages if progress.clusters else ()
        if progress.over:
            raise RuntimeError(f"the job ended as {progress.phase.value}: {progress.reason}")
        if stages and min(stage.version for stage in stages) >= version:
            return stages
        time.sleep(POLL_S)


def _cpu(swarm: LocalSwarm) -> dict[str, float]:
    """Processor time so far of both peers, seconds, by what they do; a worker's busiest thread computes."""
    found = {"computing": 0.0, "worker's other threads": 0.0, "ravnestd": 0.0, "p2pd": 0.0}
    for peer in swarm.peers:
        for worker in peer.children("daemon.worker"):
            threads = sorted(thread.user_time + thread.system_time for thread in worker.threads())
            found["computing"] += threads[-1]
            found["worker's other threads"] += sum(threads[:-1])
        assert peer.process is not None, "it was started"
        found["ravnestd"] += _of(psutil.Process(peer.process.pid))
        found["p2pd"] += sum(_of(process) for process in peer.children("p2pd -"))
    return found


def _of(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _busy(timeline: StageTimeline, begin_us: int, end_us: int) -> float:
    """Share of the time that the stage's compute thread worked."""
    inside = [s for s in timeline.operations if begin_us <= s.start_us and s.end_us <= end_us]
    return sum(span.duration_us for span in inside) / (end_us - begin_us)


def _between(timeline: StageTimeline, begin_us: int, end_us: int) -> float:
    """Share of the time between one operation and the next, where nothing was waited for.

    A wait for the other stage takes milliseconds, what our code does there microseconds.
    """
    inside = [s for s in timeline.operations if begin_us <= s.start_us and s.end_us <= end_us]
    gaps_us = [b.start_us - a.end_us for a, b in pairwise(inside)]
    return sum(gap for gap in gaps_us if gap < GAP_US) / (end_us - begin_us)


if __name__ == "__main__":
    main()
