"""minGPT's sorter and a two-layer LSTM language model."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo.case import Case


class CausalSelfAttention(nn.Module):
    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.attn_dropout, self.resid_dropout = nn.Dropout(0.1), nn.Dropout(0.1)
        mask = torch.tril(torch.ones(context, context)).view(1, 1, context, context)
        self.register_buffer("bias", mask)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.size()
        q, k, v = self.c_attn(x).split(width, dim=2)
        q, k, v = (t.view(batch, length, self.heads, -1).transpose(1, 2) for t in (q, k, v))
        scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        scores = scores.masked_fill(self.bias[:, :, :length, :length] == 0, float("-inf"))
        y = self.attn_dropout(F.softmax(scores, dim=-1)) @ v
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).contiguous().view(batch, length, width)))


class NewGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))
        return 0.5 * x * (1.0 + torch.tanh(inner))


class SorterBlock(nn.Module):
    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = CausalSelfAttention(width, heads, context)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), NewGelu(), nn.Linear(4 * width, width), nn.Dropout(0.1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GptSorter(nn.Module):
    """minGPT's gpt-nano (3 layers, 3 heads, width 48) on its sorting task."""

    def __init__(self, digits: int, context: int, depth: int = 3, heads: int = 3, width: int = 48) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(digits, width), nn.Embedding(context, width)
        self.drop = nn.Dropout(0.1)
        self.h = nn.ModuleList(SorterBlock(width, heads, context) for _ in range(depth))
        self.ln_f, self.lm_head = nn.LayerNorm(width), nn.Linear(width, digits, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(0, tokens.size(1), dtype=torch.long, device=tokens.device).unsqueeze(0)
        x = self.drop(self.wte(tokens) + self.wpe(positions))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class LstmLanguageModel(nn.Module):
    def __init__(self, words: int = 50, width: int = 48) -> None:
        super().__init__()
        self.embed, self.drop = nn.Embedding(words, width), nn.Dropout(0.2)
        self.lstm = nn.LSTM(width, width, num_layers=2, dropout=0.2, batch_first=True)
        self.head = nn.Linear(width, words)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.drop(self.embed(tokens)))[0])


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy over all positions; label -1 counts for nothing."""
    return F.cross_entropy(logits.view(-1, logits.size(-1)), labels.view(-1), ignore_index=-1)


def gpt_sorter(length: int = 6, digits: int = 3, batch: int = 16) -> Case:
    x = torch.randint(digits, (batch, length))
    whole = torch.cat([x, x.sort(dim=1).values], dim=1)
    labels = whole[:, 1:].clone()
    labels[:, : length - 1] = -1
    model = GptSorter(digits, 2 * length - 1)
    return Case(model, (whole[:, :-1].clone(),), (labels,), token_loss)


def lstm() -> Case:
    tokens = torch.randint(50, (8, 21))
    return Case(LstmLanguageModel(), (tokens[:, :-1].clone(),), (tokens[:, 1:].clone(),), token_loss)
