"""The ceiling: plain PyTorch trains the whole model in one process; two of these at once share nothing.

`python -m benchmarks.pipelines.whole SIZE M SECONDS`: M micro-batches an update. Prints {"microbatches",
"seconds", "marks"}, from the end of the first update. A side that takes turns, where SECONDS are inf.
"""

from __future__ import annotations

import json
import math
import sys
import time

import torch

from benchmarks.pipelines import gpt
from benchmarks.pipelines.turns import say_ready, told_to_end


def main() -> None:
    size, m, seconds = gpt.SIZES[sys.argv[1]], int(sys.argv[2]), float(sys.argv[3])
    torch.set_num_threads(1)
    (model,) = gpt.chunks(size, 1)
    optimizer = gpt.optimizer(model)
    pairs = list(zip(*(torch.split(t, size.sequences) for t in gpt.text(size, m)), strict=True))
    marks: list[tuple[float, int]] = []

    def update() -> None:
        for tokens, following in pairs:
            torch.autograd.backward(gpt.loss(model(tokens), following) / m)
            marks.append((time.time(), len(marks) + 1))
        optimizer.step()
        optimizer.zero_grad()

    update()
    say_ready()
    begun_s = time.perf_counter()
    while not (told_to_end() if math.isinf(seconds) else time.perf_counter() - begun_s > seconds):
        update()
    took_s = time.perf_counter() - begun_s
    print(json.dumps({"microbatches": len(marks) - m, "seconds": took_s, "marks": marks}))


if __name__ == "__main__":
    main()
