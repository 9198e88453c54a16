"""The models that every side trains: a GPT of one of two sizes, and text of the standard library."""

from __future__ import annotations

import inspect
import pydoc_data.topics
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

BLOCKS, CONTEXT, VOCABULARY = 8, 128, 128


class Size(NamedTuple):
    """Of a model and its micro-batch.

    `sequences` are a micro-batch's, of `CONTEXT` tokens each; `microbatch_s` is about what a pipeline of two
    stages takes for one, only for choosing how many updates to train.
    """

    width: int
    heads: int
    sequences: int
    microbatch_s: float


SIZES = {"25M": Size(512, 8, 4, 0.5), "11M": Size(336, 6, 4, 0.22)}
"""By about the number of parameters."""

LEARNING_RATE, WEIGHT_DECAY = 3e-4, 0.01


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).split(width, dim=2)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).reshape(batch, length, width))
        mapped: Tensor = self.mlp(self.norm2(x))
        return x + mapped


class Embedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(VOCABULARY, width), nn.Embedding(CONTEXT, width)

    def forward(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.token(tokens) + self.place(torch.arange(CONTEXT))
        return embedded


def chunks(size: Size, count: int) -> list[nn.Sequential]:
    """The model in `count` runs of equally many blocks; the first embeds, the last has the head.

    The same weights whatever the count.
    """
    torch.manual_seed(0)
    layers: list[nn.Module] = [Block(size.width, size.heads) for _ in range(BLOCKS)]
    first = Embedding(size.width)
    last = nn.Sequential(nn.LayerNorm(size.width), nn.Linear(size.width, VOCABULARY, bias=False))
    each = BLOCKS // count
    parts = [layers[n * each : (n + 1) * each] for n in range(count)]
    parts[0] = [first, *parts[0]]
    parts[-1] = [*parts[-1], last]
    return [nn.Sequential(*part) for part in parts]


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)


def text(size: Size, microbatches: int) -> tuple[Tensor, Tensor]:
    """Tokens and the ones that follow them, each (samples, CONTEXT)."""
    samples = microbatches * size.sequences
    letters = inspect.getsource(pydoc_data.topics).encode("ascii", "replace")
    wanted = samples * CONTEXT + 1
    tokens = torch.tensor(list((letters * (wanted // len(letters) + 1))[:wanted]))
    return tokens[:-1].view(samples, CONTEXT), tokens[1:].view(samples, CONTEXT)
