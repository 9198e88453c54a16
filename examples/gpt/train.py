"""A small GPT that learns to write Python documentation letter by letter, trained by a swarm.

    python examples/gpt/train.py                     # through the ravnestd on this computer
    python examples/gpt/train.py /ip4/…/p2p/12D3…    # through any peer
    ravnest submit examples/gpt/train.py --follow    # only submit and watch

The text is on every computer with Python: the docstrings of the standard library. Nothing is downloaded.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ravnest_p2p as rn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from docstrings import ALPHABET, windows

CONTEXT = 64
WIDTH = 96
HEADS = 4
BLOCKS = 3
LETTERS = 600_000
PASSES = 2
MICROBATCH_SIZE = 8
MICROBATCHES_PER_UPDATE = 4


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


class GPT(nn.Module):
    """Letters of shape (batch, length), int64, to logits of shape (batch, length, letters)."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(len(ALPHABET), WIDTH)
        self.places = nn.Parameter(0.1 * torch.randn(CONTEXT, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, len(ALPHABET))
        nn.init.normal_(self.letters.weight, std=0.1)

    def forward(self, letters: Tensor) -> Tensor:
        x = self.letters(letters) + self.places[: letters.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def build_model(seed: int = 0) -> GPT:
    """The network, always with the same first weights."""
    torch.manual_seed(seed)
    return GPT()


def data() -> tuple[Tensor, Tensor]:
    """Windows of the text, and the same one letter on: two tensors of shape (samples, CONTEXT), int64."""
    letters = windows(1, LETTERS).flatten()
    rows = (len(letters) - 1) // CONTEXT
    return letters[: rows * CONTEXT].view(rows, -1), letters[1 : rows * CONTEXT + 1].view(rows, -1)


def loss(logits: Tensor, letters: Tensor) -> Tensor:
    """Mean cross-entropy, nats a letter."""
    return F.cross_entropy(logits.flatten(0, 1), letters.flatten())


def job() -> rn.JobRequest:
    """What the swarm is asked for."""
    return rn.JobRequest(
        model=build_model(),
        data=data(),
        loss=loss,
        optimizer=rn.AdamW(lr=3e-3, betas=(0.9, 0.98), clip_norm=1.0, warmup_updates=20, schedule="cosine"),
        passes=PASSES,
        microbatch_size=MICROBATCH_SIZE,
        microbatches_per_update=MICROBATCHES_PER_UPDATE,
        updates_per_round=20,
        name="gpt on docstrings",
    )


@torch.no_grad()
def sample(model: GPT, start: str = "Return ", length: int = 300, seed: int = 0) -> str:
    """Text that the model writes after `start`."""
    generator = torch.Generator().manual_seed(seed)
    letters = [ALPHABET.index(letter) for letter in start]
    model.eval()
    for _ in range(length):
        logits = model(torch.tensor([letters[-CONTEXT:]]))[0, -1]
        chosen = torch.multinomial(torch.softmax(logits / 0.8, 0), 1, generator=generator)
        letters.append(int(chosen))
    return "".join(ALPHABET[letter] for letter in letters)


def main() -> None:
    model = build_model()
    with rn.connect(*sys.argv[1:]) as swarm:
        running = swarm.submit_request(job(), say=print)
        for progress in running.follow():
            nats = "–" if progress.loss is None else f"{progress.loss:.3f}"
            done = f"{progress.batches_done}/{progress.total_batches} batches"
            print(f"{progress.phase.value}: {done}, loss {nats}")
        model.load_state_dict(running.result())
    print(sample(model))


if __name__ == "__main__":
    main()
