"""The model that every side trains: a GPT of 25.4 M parameters, and text of the standard library."""

from __future__ import annotations

import inspect
import pydoc_data.topics

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH, HEADS, BLOCKS, CONTEXT, VOCABULARY = 512, 8, 8, 128, 128
MICROBATCH = 4
"""Sequences of `CONTEXT` tokens."""

LEARNING_RATE, WEIGHT_DECAY = 3e-4, 0.01


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.project = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (
            part.view(batch, length, HEADS, WIDTH // HEADS).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).split(WIDTH, dim=2)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        mapped: Tensor = self.mlp(self.norm2(x))
        return x + mapped


class Embedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.token(tokens) + self.place(torch.arange(CONTEXT))
        return embedded


def chunks(count: int) -> list[nn.Sequential]:
    """The model in `count` runs of equally many blocks; the first embeds, the last has the head.

    The same weights whatever the count.
    """
    torch.manual_seed(0)
    layers: list[nn.Module] = [Block() for _ in range(BLOCKS)]
    first, last = Embedding(), nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False))
    each = BLOCKS // count
    parts = [layers[n * each : (n + 1) * each] for n in range(count)]
    parts[0] = [first, *parts[0]]
    parts[-1] = [*parts[-1], last]
    return [nn.Sequential(*part) for part in parts]


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)


def text(samples: int) -> tuple[Tensor, Tensor]:
    """Tokens and the ones that follow them, each (samples, CONTEXT)."""
    letters = inspect.getsource(pydoc_data.topics).encode("ascii", "replace")
    wanted = samples * CONTEXT + 1
    tokens = torch.tensor(list((letters * (wanted // len(letters) + 1))[:wanted]))
    return tokens[:-1].view(samples, CONTEXT), tokens[1:].view(samples, CONTEXT)
