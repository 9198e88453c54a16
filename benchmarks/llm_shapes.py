"""GPT-2 and Llama in plain PyTorch, at their published sizes: models to analyse, not to train.

Parameter counts are those of the published checkpoints (GPT-2 124,439,808 with its tied head; Llama 2 7B
6,738,415,616; Llama 3.2 1B 1,235,814,400 with its tied head). Build them under `torch.device("meta")`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Gpt2Shape:
    """Sizes of a GPT-2."""

    vocabulary: int = 50257
    context: int = 1024
    width: int = 768
    heads: int = 12
    depth: int = 12
    tied: bool = True


@dataclass(frozen=True)
class LlamaShape:
    """Sizes of a Llama; `groups` are the key and value heads."""

    vocabulary: int = 32000
    width: int = 4096
    inner: int = 11008
    heads: int = 32
    groups: int = 32
    depth: int = 32
    tied: bool = False
    theta: float = 10000.0


GPT2 = Gpt2Shape()
LLAMA_1B = LlamaShape(128256, 2048, 8192, 32, 8, 16, True, 500000.0)
LLAMA_7B = LlamaShape()


class Gpt2Block(nn.Module):
    """Pre-norm attention and MLP with biases, tanh-approximated GELU."""

    def __init__(self, shape: Gpt2Shape) -> None:
        super().__init__()
        width = shape.width
        self.heads = shape.heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Hidden states (batch, length, width) to the same."""
        batch, length, width = x.shape
        parts = self.qkv(self.ln_1(x)).split(width, -1)
        q, k, v = (p.view(batch, length, self.heads, -1).transpose(1, 2) for p in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.drop(self.proj(y.transpose(1, 2).reshape(batch, length, width)))
        return x + self.drop(self.down(F.gelu(self.up(self.ln_2(x)), approximate="tanh")))


class Gpt2(nn.Module):
    """Tokens (batch, length) to logits (batch, length, vocabulary)."""

    def __init__(self, shape: Gpt2Shape = GPT2) -> None:
        super().__init__()
        self.wte = nn.Embedding(shape.vocabulary, shape.width)
        self.wpe = nn.Embedding(shape.context, shape.width)
        self.drop = nn.Dropout(0.1)
        self.h = nn.ModuleList(Gpt2Block(shape) for _ in range(shape.depth))
        self.ln_f = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        if shape.tied:
            self.head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.drop(self.wte(tokens) + self.wpe(places))
        for block in self.h:
            x = block(x)
        logits: Tensor = self.head(self.ln_f(x))
        return logits


class RmsNorm(nn.Module):
    """Root-mean-square norm as Llama has it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5))


class LlamaBlock(nn.Module):
    """RMSNorm, grouped attention with rotary positions, SwiGLU."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.heads, self.groups = shape.heads, shape.groups
        self.size = shape.width // shape.heads
        self.input_norm, self.post_norm = RmsNorm(shape.width), RmsNorm(shape.width)
        self.q = nn.Linear(shape.width, shape.heads * self.size, bias=False)
        self.k = nn.Linear(shape.width, shape.groups * self.size, bias=False)
        self.v = nn.Linear(shape.width, shape.groups * self.size, bias=False)
        self.o = nn.Linear(shape.heads * self.size, shape.width, bias=False)
        self.gate = nn.Linear(shape.width, shape.inner, bias=False)
        self.up = nn.Linear(shape.width, shape.inner, bias=False)
        self.down = nn.Linear(shape.inner, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Hidden states (batch, length, width) and rotary tables (length, head size) to hidden states."""
        batch, length, _ = x.shape
        h = self.input_norm(x)
        q = _rotated(self.q(h).view(batch, length, self.heads, self.size).transpose(1, 2), cos, sin)
        k = _rotated(self.k(h).view(batch, length, self.groups, self.size).transpose(1, 2), cos, sin)
        v = self.v(h).view(batch, length, self.groups, self.size).transpose(1, 2)
        shared = self.heads // self.groups
        if shared > 1:
            k, v = (t.repeat_interleave(shared, dim=1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(batch, length, -1))
        h = self.post_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    """Tokens (batch, length) to logits (batch, length, vocabulary)."""

    def __init__(self, shape: LlamaShape = LLAMA_7B) -> None:
        super().__init__()
        self.embed = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(LlamaBlock(shape) for _ in range(shape.depth))
        self.norm = RmsNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        if shape.tied:
            self.head.weight = self.embed.weight
        size = shape.width // shape.heads
        rates = shape.theta ** -(torch.arange(0, size, 2).float() / size)
        self.register_buffer("rates", rates, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token."""
        places = torch.arange(tokens.shape[1], device=tokens.device).float()
        angles = places[:, None] * self.rates[None, :]  # type: ignore[index]
        both = torch.cat((angles, angles), -1)
        cos, sin = both.cos(), both.sin()
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin)
        logits: Tensor = self.head(self.norm(x))
        return logits


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy over all tokens."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin
