"""A GPT that learns to sort: it reads six digits and writes them in order, trained by a swarm.

    python examples/gpt_sorter/train.py                     # through the ravnestd on this computer
    python examples/gpt_sorter/train.py /ip4/…/p2p/12D3…    # through any peer
    ravnest submit examples/gpt_sorter/train.py --follow    # only submit and watch

The task is minGPT's (https://github.com/karpathy/minGPT, demo.ipynb); the model is of torch's own parts.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ravnest_p2p as rn

DIGITS = 10
LENGTH = 6
WIDTH = 64
BLOCKS = 3
HEADS = 4
SAMPLES = 6400
PASSES = 4


class Block(nn.Module):
    """Causal self-attention and a two-layer network, each added to what it read."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.network = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.attention_norm(x)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.network(x)


class Sorter(nn.Module):
    """Digits of shape (batch, length), int64, to logits of the next digit, shape (batch, length, DIGITS)."""

    def __init__(self) -> None:
        super().__init__()
        self.digits = nn.Embedding(DIGITS, WIDTH)
        self.places = nn.Parameter(0.1 * torch.randn(2 * LENGTH - 1, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, DIGITS)

    def forward(self, digits: Tensor) -> Tensor:
        x = self.digits(digits) + self.places[: digits.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def build_model(seed: int = 0) -> Sorter:
    """The network, always with the same first weights."""
    torch.manual_seed(seed)
    return Sorter()


def unsorted(samples: int, seed: int) -> Tensor:
    """Random digits, shape (samples, LENGTH), int64."""
    return torch.randint(DIGITS, (samples, LENGTH), generator=torch.Generator().manual_seed(seed))


def data() -> tuple[Tensor, Tensor]:
    """Digits followed by the same in order, and the digit after each; only those in order are asked for."""
    digits = unsorted(SAMPLES, 0)
    whole = torch.cat([digits, digits.sort(1).values], 1)
    labels = whole[:, 1:].clone()
    labels[:, : LENGTH - 1] = -100
    return whole[:, :-1], labels


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the digits that are asked for, nats."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def job() -> rn.JobRequest:
    """What the swarm is asked for."""
    return rn.JobRequest(
        model=build_model(),
        data=data(),
        loss=loss,
        optimizer=rn.AdamW(lr=3e-3, clip_norm=1.0, warmup_updates=20, schedule="cosine"),
        passes=PASSES,
        microbatch_size=32,
        microbatches_per_update=4,
        updates_per_round=20,
        stages=2,
        clusters=1,
        name="GPT sorter",
    )


@torch.no_grad()
def judged(model: Sorter) -> str:
    """Share of unseen sequences that the model sorts without a mistake, in words."""
    digits = unsorted(500, 1)
    written = digits
    model.eval()
    for _ in range(LENGTH):
        written = torch.cat([written, model(written)[:, -1:].argmax(-1)], 1)
    right = (written[:, LENGTH:] == digits.sort(1).values).all(1)
    return f"sorts {100 * right.float().mean():.0f} % of 500 unseen sequences"


def main() -> None:
    model = build_model()
    with rn.connect(*sys.argv[1:]) as swarm:
        running = swarm.submit_request(job(), say=print)
        for progress in running.follow():
            nats = "–" if progress.loss is None else f"{progress.loss:.3f}"
            done = f"{progress.batches_done}/{progress.total_batches} batches"
            print(f"{progress.phase.value}: {done}, loss {nats}")
        model.load_state_dict(running.result())
    print(judged(model))


if __name__ == "__main__":
    main()
