"""Small models that the tests of the model room share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = 20
CONTEXT = 8


class DigitsCnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(16)
        self.drop = nn.Dropout(0.25)
        self.head = nn.Linear(16 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(x)), inplace=True), 2)
        x = F.max_pool2d(F.relu(self.norm2(self.conv2(x))), 2)
        return self.head(self.drop(x.flatten(1)))


class ResidualNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(5))
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(4))
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norms[0](self.stem(x)))
        for block in (0, 2):
            y = self.relu(self.norms[block + 1](self.convs[block](x)))
            y = self.norms[block + 2](self.convs[block + 1](y))
            y += x
            x = self.relu(y)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Block(nn.Module):
    def __init__(self, width: int, manual: bool) -> None:
        super().__init__()
        self.manual = manual
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(0.1)
        mask = torch.tril(torch.ones(CONTEXT, CONTEXT, dtype=torch.bool))
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.norm1(x)).chunk(3, -1)
        q, k, v = (part.view(batch, length, 2, width // 2).transpose(1, 2) for part in parts)
        if self.manual:
            scores = q @ k.transpose(-2, -1) / (width // 2) ** 0.5
            scores = scores.masked_fill(~self.mask[:length, :length], float("-inf"))
            y = self.drop(scores.softmax(-1)) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.drop(self.proj(y.transpose(1, 2).reshape(batch, length, width)))
        return x + self.drop(self.down(F.gelu(self.up(self.norm2(x)))))


class CharGpt(nn.Module):
    def __init__(self, *, manual: bool = False, tied: bool = False, depth: int = 2, width: int = 16) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width, manual) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x) + self.positions(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


def flat_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.view(-1, logits.size(-1)), labels.view(-1))


@dataclass(frozen=True)
class Case:
    model: nn.Module
    inputs: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    loss: Callable[..., Any]


def _mlp() -> Case:
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 3))
    return Case(model, (torch.randn(4, 8),), (torch.randn(4, 3),), nn.MSELoss())


def _cnn() -> Case:
    return Case(DigitsCnn(), (torch.randn(4, 1, 8, 8),), (torch.randint(10, (4,)),), F.cross_entropy)


def _residual() -> Case:
    return Case(ResidualNet(), (torch.randn(4, 3, 8, 8),), (torch.randint(10, (4,)),), F.cross_entropy)


def _gpt(**options: Any) -> Case:
    tokens = torch.randint(VOCABULARY, (3, CONTEXT))
    return Case(CharGpt(**options), (tokens,), (tokens.roll(-1, 1),), flat_cross_entropy)


CASES: dict[str, Callable[[], Case]] = {
    "mlp": _mlp,
    "cnn": _cnn,
    "residual": _residual,
    "gpt": _gpt,
    "gpt_manual": lambda: _gpt(manual=True),
    "gpt_tied": lambda: _gpt(tied=True),
}


def make(name: str, seed: int = 0) -> Case:
    """The case with that name, its weights and examples drawn from the seed."""
    torch.manual_seed(seed)
    return CASES[name]()
