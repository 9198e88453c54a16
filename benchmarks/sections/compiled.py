"""What does a compiler gain on a CPU, and what does it cost?

The loop and the stage in which regions were compiled (`model.compiled`) run forward and backward in turns in
one process on one thread, in float32 and in bf16. Compiling is given in CPU seconds, those of the compiler's
programs included. Needs `g++`; takes minutes, so it runs only where it is asked for.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import Goal
from benchmarks.sections.overhead import captured_step, compare
from benchmarks.zoo import Case, make
from ravnest_p2p.model import StageComputation, capture, split_program
from ravnest_p2p.model.compiled import Compiler, compile_stage
from ravnest_p2p.model.mixed import MixedComputation

WORDS, WIDTH, LENGTH, HEADS, DEPTH = 512, 256, 128, 4, 4
KINDS: dict[str, type[StageComputation]] = {"fp32": StageComputation, "bf16": MixedComputation}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        parts = self.qkv(self.norm1(x)).chunk(3, -1)
        q, k, v = (part.view(batch, length, HEADS, -1).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        x = x + self.proj(y.reshape(batch, length, WIDTH))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Gpt(nn.Module):
    """Wide enough that products take most of the time."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x) + self.positions(torch.arange(x.shape[1], device=x.device))
        return self.head(self.norm(self.blocks(h)))


def wide_gpt() -> Case:
    torch.manual_seed(0)
    tokens = torch.randint(WORDS, (4, LENGTH))

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.view(-1, WORDS), labels.view(-1))

    return Case(Gpt(), (tokens,), (tokens.roll(-1, 1),), loss)


CASES: dict[str, Callable[[], Case]] = {
    "gpt_256": wide_gpt,
    **{name: lambda name=name: make(name) for name in ("llama", "cnn", "convnext", "resnet50")},  # type: ignore[misc]
}


def run(only: tuple[str, ...], quick: bool) -> tuple[dict[str, Any], list[Goal]]:
    """Rows by model and precision; goal: nothing becomes slower but for noise."""
    torch.set_num_threads(1)
    folder = tempfile.mkdtemp(prefix="rn-")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    rows: dict[str, Any] = {}
    try:
        for name, case in CASES.items():
            if not only or name in only:
                rows |= {f"{name} {kind}": _row(case(), KINDS[kind], quick) for kind in KINDS}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return rows, [
        Goal("speed of the loop, worst", min(row["gain"] for row in rows.values()), "times", ">= 0.95")
    ]


def _row(case: Case, kind: type[StageComputation], quick: bool) -> dict[str, Any]:
    package = capture(case.model, case.inputs, loss=case.loss, example_labels=case.labels)
    (stage,) = split_program(package.program, [])
    regions = compile_stage(computation := kind(stage), compiler := Compiler(seconds=float("inf")))
    loop, compiled = (captured_step(case, package, c) for c in (kind(stage), computation))
    before = sum(os.times()[:4])
    found = torch.cat([g.flatten() for g in compiled() if g is not None])
    compile_s = sum(os.times()[:4]) - before
    expected = torch.cat([g.flatten() for g in loop() if g is not None])
    times = compare(compiled, loop, quick)
    return {
        "loop_cpu_s": times["captured_cpu_s"],
        "compiled_cpu_s": times["eager_cpu_s"],
        "gain": times["ratio"],
        "quartiles": times["quartiles"],
        "pairs": times["pairs"],
        "regions": len(regions),
        "compiled": compiler.compiled,
        "compile_cpu_s": compile_s,
        "gradients_differ": float((found - expected).norm() / expected.norm()),
    }
