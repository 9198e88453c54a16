"""The ceiling: plain PyTorch trains the whole model in one process; two of these at once share nothing.

`python -m benchmarks.pipelines.whole M SECONDS BEGIN_S`: M micro-batches an update, from the time BEGIN_S on.
Prints {"microbatches", "seconds"} of whole updates.
"""

from __future__ import annotations

import json
import sys
import time

import torch

from benchmarks.pipelines import gpt


def main() -> None:
    m, seconds, begin_s = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    torch.set_num_threads(1)
    (model,) = gpt.chunks(1)
    optimizer = gpt.optimizer(model)
    pairs = list(zip(*(torch.split(t, gpt.MICROBATCH) for t in gpt.text(m * gpt.MICROBATCH)), strict=True))

    def update() -> None:
        for tokens, following in pairs:
            torch.autograd.backward(gpt.loss(model(tokens), following) / m)
        optimizer.step()
        optimizer.zero_grad()

    update()
    while time.time() < begin_s:
        time.sleep(0.001)
    begun_s = time.perf_counter()
    done = 0
    while time.perf_counter() - begun_s < seconds:
        update()
        done += m
    print(json.dumps({"microbatches": done, "seconds": time.perf_counter() - begun_s}))


if __name__ == "__main__":
    main()
