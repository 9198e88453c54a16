"""What `benchmarks.async_penalty` trains: a small GPT that reads the Python standard library by letters.

Sizes are for one core. The optimizer's numbers are those of examples/gpt, chosen there before and for another
text; nothing here was chosen by what this benchmark gives.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ravnest_p2p.core.types import OptimizerSpec

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
CONTEXT = 32
WIDTH = 96
HEADS = 4
BLOCKS = 4
MICROBATCH = 2
HELD_OUT_WINDOWS = 1024
WARMUP = 20


class Block(nn.Module):
    """Causal self-attention and a two-layer network, each added to what it read."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.network = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.network(x)


class CharGPT(nn.Module):
    """Letters (batch, CONTEXT), int64, to logits (batch, CONTEXT, letters)."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(len(ALPHABET), WIDTH)
        self.places = nn.Parameter(0.1 * torch.randn(CONTEXT, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, len(ALPHABET))
        nn.init.normal_(self.letters.weight, std=0.1)

    def forward(self, letters: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.letters(letters) + self.places)))


def model_of(seed: int) -> CharGPT:
    """The network with that seed's first weights."""
    torch.manual_seed(seed)
    return CharGPT()


def cross_entropy(logits: Tensor, letters: Tensor) -> Tensor:
    """Nats a letter, mean."""
    return F.cross_entropy(logits.flatten(0, 1), letters.flatten())


@cache
def text(held_out: bool) -> Tensor:
    """The modules' source as numbers of letters, int64; every eighth module is held out of training."""
    number = {letter: i for i, letter in enumerate(ALPHABET)}
    found: list[int] = []
    for place, path in enumerate(_modules()):
        if (place % 8 == 7) == held_out:
            found += [number[letter] for letter in path.read_text("utf-8") if letter in number]
    return torch.tensor(found)


def _modules() -> list[Path]:
    specs = [importlib.util.find_spec(name) for name in sorted(sys.stdlib_module_names)]
    return [Path(s.origin) for s in specs if s is not None and s.origin and s.origin.endswith(".py")]


def windows(source: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """`count` random windows and the same one letter on, each (count, CONTEXT)."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(source) - CONTEXT, (count, 1), generator=generator)
    places = starts + torch.arange(CONTEXT + 1)
    rows = source[places]
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


@torch.no_grad()
def held_out_loss(weights: Mapping[str, Tensor]) -> float:
    """Of the finished weights, on the same windows in every run."""
    model = model_of(0)
    model.load_state_dict(dict(weights))
    letters, following = windows(text(True), HELD_OUT_WINDOWS, 0)
    parts = zip(letters.split(64), following.split(64), strict=True)
    losses = [float(cross_entropy(model(x), y)) for x, y in parts]
    return sum(losses) / len(losses)


def optimizer_of(name: str, updates: int) -> OptimizerSpec:
    """AdamW as in examples/gpt, which Muon has for the rest; the others at usual rates, never searched."""
    common = {"clip_norm": 1.0, "warmup_updates": WARMUP, "schedule": "cosine", "schedule_updates": updates}
    betas = {"betas": (0.9, 0.98), "weight_decay": 1e-2}
    match name:
        case "sgd":
            return OptimizerSpec("sgd", 0.3, momentum=0.9, **common)
        case "muon":
            return OptimizerSpec("muon", 2e-2, momentum=0.95, adamw_lr=3e-3, betas=(0.9, 0.98), **common)
        case "lamb":
            return OptimizerSpec("lamb", 1e-2, decay_vectors=False, eps=1e-6, **betas, **common)
        case "adam":
            return OptimizerSpec("adam", 3e-3, betas=(0.9, 0.98), **common)
    return OptimizerSpec("adamw", 3e-3, **betas, **common)
