"""Section `scale`: published language models analysed and planned by shapes, each in its own process."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from benchmarks.common import Goal

STAGES = 4
NAMES = ("gpt2-124M tied", "gpt2-163M untied", "llama-1B tied", "llama-1.5B untied", "llama-7B")


def section(quick: bool) -> tuple[dict[str, Any], list[Goal]]:
    """Rows by model, and the goals."""
    rows = {}
    for name in NAMES[:2] if quick else NAMES:
        command = [sys.executable, "-m", "benchmarks.requirements_scale", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows[name] = json.loads(done.stdout)
    slowest = max(row["seconds"] for row in rows.values())
    largest = max(row["resident_mib"] for row in rows.values())
    goals = [
        Goal("seconds to capture, analyse and plan, imports included", slowest, "s", "<= 15"),
        Goal("memory of that", largest, "MiB", "<= 2048"),
    ]
    return rows, goals


def _child(name: str) -> dict[str, Any]:
    begun_s = time.perf_counter()
    import torch

    from benchmarks.llm_shapes import GPT2, LLAMA_1B, LLAMA_7B, Gpt2, Llama, next_token_loss
    from ravnest_p2p.model import capture_without_weights

    models: dict[str, tuple[Callable[[], torch.nn.Module], int]] = {
        "gpt2-124M tied": (lambda: Gpt2(GPT2), 1024),
        "gpt2-163M untied": (lambda: Gpt2(replace(GPT2, tied=False)), 1024),
        "llama-1B tied": (lambda: Llama(LLAMA_1B), 2048),
        "llama-1.5B untied": (lambda: Llama(replace(LLAMA_1B, tied=False)), 2048),
        "llama-7B": (lambda: Llama(LLAMA_7B), 2048),
    }
    build, length = models[name]
    with torch.device("meta"):
        model = build()
    tokens = torch.zeros(1, length, dtype=torch.long)
    package = capture_without_weights(model, (tokens,), loss=next_token_loss, example_labels=(tokens,))
    report = package.report(stages=min(STAGES, len(package.layers)))
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "counted": report.params,
        "layers": len(report.layers),
        "stages": len(report.stages),
        "balance": report.balance,
        "seconds": time.perf_counter() - begun_s,
        "resident_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    print(json.dumps(_child(sys.argv[1])))
