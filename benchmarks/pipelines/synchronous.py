"""The best synchronous schedules: torch.distributed.pipelining over gloo, one process a rank.

`python -m benchmarks.pipelines.synchronous SIZE M SCHEDULE RANK SECONDS`, with MASTER_ADDR, MASTER_PORT and
GLOO_SOCKET_IFNAME in the environment. Rank 0 prints {"microbatches", "seconds", "marks"} of whole updates. A
side that takes turns, where SECONDS are inf.
"""

from __future__ import annotations

import json
import math
import sys
import time
from typing import Any

import torch
from torch import distributed
from torch.distributed import pipelining

from benchmarks.pipelines import gpt
from benchmarks.pipelines.turns import say_ready, told_to_end

RANKS = 2
SCHEDULES = ("ZBVZeroBubble", "1F1B", "Interleaved1F1B")


def main() -> None:
    size, m = gpt.SIZES[sys.argv[1]], int(sys.argv[2])
    name, rank, seconds = sys.argv[3], int(sys.argv[4]), float(sys.argv[5])
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=RANKS)
    held = {"1F1B": [rank], "Interleaved1F1B": [rank, rank + 2], "ZBVZeroBubble": [rank, 3 - rank]}[name]
    count = 2 if name == "1F1B" else 4
    parts = gpt.chunks(size, count)
    device = torch.device("cpu")
    stages: list[Any] = [pipelining.PipelineStage(parts[n], n, count, device) for n in held]
    made: Any = getattr(pipelining, f"Schedule{name}")
    schedule = made(stages[0] if count == 2 else stages, m, loss_fn=gpt.loss)
    optimizers = [gpt.optimizer(parts[n]) for n in held]
    inputs, targets = gpt.text(size, m)

    def update() -> None:
        given = (inputs,) if 0 in held else ()
        if count - 1 in held:
            schedule.step(*given, target=targets, losses=[])
        else:
            schedule.step(*given)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    update()
    distributed.barrier()
    say_ready()
    begun_s = time.perf_counter()
    marks, go_on = [(time.time(), 0)], torch.ones(1)
    while go_on.item():
        update()
        marks.append((time.time(), marks[-1][1] + m))
        # Rank 0 decides, so that both do equally many updates.
        go_on.fill_(not (told_to_end() if math.isinf(seconds) else time.perf_counter() - begun_s > seconds))
        distributed.broadcast(go_on, 0)
    if rank == 0:
        done, took_s = marks[-1][1], time.perf_counter() - begun_s
        print(json.dumps({"microbatches": done, "seconds": took_s, "marks": marks}))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
