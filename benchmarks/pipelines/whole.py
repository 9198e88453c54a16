"""The ceiling: plain PyTorch trains the whole model in one process; two of these at once share nothing.

`python -m benchmarks.pipelines.whole M`: M micro-batches an update; a side that takes turns.
"""

from __future__ import annotations

import json
import sys
import time

import torch

from benchmarks.pipelines import gpt
from benchmarks.pipelines.turns import say_ready, told_to_end


def main() -> None:
    m = int(sys.argv[1])
    torch.set_num_threads(1)
    (model,) = gpt.chunks(1)
    optimizer = gpt.optimizer(model)
    pairs = list(zip(*(torch.split(t, gpt.MICROBATCH) for t in gpt.text(m * gpt.MICROBATCH)), strict=True))
    marks: list[tuple[float, int]] = []
    while not told_to_end():
        for tokens, following in pairs:
            torch.autograd.backward(gpt.loss(model(tokens), following) / m)
            marks.append((time.time(), len(marks) + 1))
        if len(marks) == m:
            say_ready()
        optimizer.step()
        optimizer.zero_grad()
    print(json.dumps({"marks": marks}))


if __name__ == "__main__":
    main()
