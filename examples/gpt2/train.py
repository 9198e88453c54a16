"""Hugging Face's GPT-2 at small size, which learns Python documentation letter by letter, trained by a swarm.

    python examples/gpt2/train.py                     # through the ravnestd on this computer
    python examples/gpt2/train.py /ip4/…/p2p/12D3…    # through any peer
    ravnest submit examples/gpt2/train.py --follow    # only submit and watch

The model is made from a config, the text is the standard library's: nothing is downloaded. The model computes
its loss itself. It needs `transformers` (`pip install '.[bench]'`, Python 3.11).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import ravnest_p2p as rn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from docstrings import ALPHABET, windows, written

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

CONTEXT = 64
LETTERS = 200_000
PASSES = 2


class Gpt2(nn.Module):
    """Letters of shape (batch, length), int64, to the mean loss of guessing each from those before, nats."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            vocab_size=len(ALPHABET),
            n_positions=CONTEXT,
            n_embd=96,
            n_layer=4,
            n_head=4,
            initializer_range=0.1,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
            bos_token_id=0,
            eos_token_id=0,
        )
        self.model = GPT2LMHeadModel(config)

    def forward(self, letters: Tensor, labels: Tensor) -> Tensor:
        return self.model(input_ids=letters, labels=labels).loss


def build_model(seed: int = 0) -> Gpt2:
    """The network, always with the same first weights."""
    torch.manual_seed(seed)
    return Gpt2()


def job() -> rn.JobRequest:
    """What the swarm is asked for."""
    letters = windows(CONTEXT, LETTERS)
    return rn.JobRequest(
        model=build_model(),
        data=(letters, letters),
        loss=None,
        optimizer=rn.AdamW(lr=3e-3, betas=(0.9, 0.98), clip_norm=1.0, warmup_updates=20, schedule="cosine"),
        passes=PASSES,
        microbatch_size=8,
        microbatches_per_update=4,
        updates_per_round=20,
        stages=3,
        clusters=1,
        name="GPT-2 on docstrings",
    )


@torch.no_grad()
def judged(model: Gpt2) -> str:
    """What the model has learned, in words."""
    return f"writes {sample(model, length=40)!r}"


@torch.no_grad()
def sample(model: Gpt2, start: str = "Return ", length: int = 200, seed: int = 0) -> str:
    """Text that the model writes after `start`."""
    generator = torch.Generator().manual_seed(seed)
    letters = torch.tensor([ALPHABET.index(letter) for letter in start])
    model.eval()
    for _ in range(length):
        logits = model.model(letters[None, -CONTEXT:]).logits[0, -1]
        chosen = torch.multinomial(torch.softmax(logits / 0.8, 0), 1, generator=generator)
        letters = torch.cat([letters, chosen])
    return written(letters)


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
