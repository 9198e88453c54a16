"""Models with at least four similar blocks, small enough to be measured on any computer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.llm_shapes import Gpt2, Gpt2Shape, Llama, LlamaShape, next_token_loss
from ravnest_p2p.model import Package, capture_without_weights


@dataclass(frozen=True)
class Case:
    """A model and one micro-batch."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    loss: Callable[..., Any]


class Residual(nn.Module):
    """Two convolutions with BatchNorm and a skip connection."""

    def __init__(self, width: int, inner: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, inner, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(inner, inner, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(inner), nn.BatchNorm2d(inner)
        self.skip: nn.Module = nn.Identity()
        if stride > 1:
            self.skip = nn.Conv2d(width, inner, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, width, height, length) to the same, or halved."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.skip(x))


class Depthwise(nn.Module):
    """A ConvNeXt block: depthwise convolution, LayerNorm, MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Images to images of the same shape."""
        y = self.norm(self.conv(x).permute(0, 2, 3, 1))
        return x + self.down(F.gelu(self.up(y))).permute(0, 3, 1, 2)


class Recurrent(nn.Module):
    """LSTM layers written as cells over the time steps."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, width)
        self.wide = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(depth))
        self.back = nn.ModuleList(nn.Linear(width, 4 * width, bias=False) for _ in range(depth))
        self.head = nn.Linear(width, 64)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, length) to logits (batch, length, 64)."""
        x = self.embed(tokens)
        for wide, back in zip(self.wide, self.back, strict=True):
            gates = wide(x)
            h = torch.zeros_like(x[:, 0])
            c = torch.zeros_like(h)
            steps = []
            for t in range(x.shape[1]):
                i, f, g, o = (gates[:, t] + back(h)).chunk(4, -1)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
                steps.append(h)
            x = torch.stack(steps, 1)
        logits: Tensor = self.head(x)
        return logits


def _tokens(model: nn.Module, vocabulary: int, batch: int, length: int) -> Case:
    tokens = torch.randint(vocabulary, (batch, length))
    return Case(model, (tokens,), (tokens.roll(-1, 1),), next_token_loss)


def _images(model: nn.Module, batch: int, size: int) -> Case:
    return Case(model, (torch.randn(batch, 3, size, size),), (torch.randint(10, (batch,)),), F.cross_entropy)


def _headed(*parts: nn.Module, width: int) -> nn.Module:
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def _pyramid() -> nn.Module:
    stem = [nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    widths = [(32, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1)]
    return _headed(*stem, *(Residual(*width) for width in widths), width=128)


CASES: dict[str, Callable[[], Case]] = {
    "gpt2": lambda: _tokens(Gpt2(Gpt2Shape(512, 128, 192, 6, 8, False)), 512, 4, 128),
    "gpt2 tied": lambda: _tokens(Gpt2(Gpt2Shape(4096, 128, 192, 6, 8)), 4096, 4, 128),
    "llama": lambda: _tokens(Llama(LlamaShape(512, 192, 512, 6, 3, 8)), 512, 4, 128),
    "gpt2 large vocabulary": lambda: _tokens(Gpt2(Gpt2Shape(8192, 128, 128, 4, 6, False)), 8192, 4, 64),
    "resnet": lambda: _images(_pyramid(), 8, 32),
    "convnext": lambda: _images(
        _headed(nn.Conv2d(3, 64, 4, 4), *(Depthwise(64) for _ in range(6)), width=64), 8, 64
    ),
    "mlp": lambda: Case(
        nn.Sequential(*(m for _ in range(16) for m in (nn.Linear(512, 512), nn.ReLU())), nn.Linear(512, 8)),
        (torch.randn(128, 512),),
        (torch.randn(128, 8),),
        F.mse_loss,
    ),
    "lstm": lambda: _tokens(Recurrent(192, 6), 64, 32, 24),
}


LARGE: dict[str, Callable[[], Case]] = {
    "gpt2 100M": lambda: _tokens(Gpt2(Gpt2Shape(8192, 256, 768, 12, 12, False)), 8192, 2, 128),
    "convnext 50M": lambda: _images(
        _headed(nn.Conv2d(3, 512, 8, 8), *(Depthwise(512) for _ in range(24)), width=512), 4, 128
    ),
}


def weightless(name: str) -> Package:
    """A large case by shapes alone."""
    with torch.device("meta"):
        case = LARGE[name]()
    inputs, labels = (tuple(torch.zeros_like(t, device="cpu") for t in g) for g in (case.inputs, case.labels))
    return capture_without_weights(case.model, inputs, loss=case.loss, example_labels=labels)


def make(name: str) -> Case:
    """The case with that name, seeded."""
    torch.manual_seed(0)
    return CASES[name]()
