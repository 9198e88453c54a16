"""Hugging Face's BERT at small size, which learns to fill in masked letters of Python documentation.

    python examples/bert/train.py                     # through the ravnestd on this computer
    python examples/bert/train.py /ip4/…/p2p/12D3…    # through any peer
    ravnest submit examples/bert/train.py --follow    # only submit and watch

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
from docstrings import ALPHABET, windows

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

LENGTH = 8
LETTERS = 150_000
PASSES = 3
MASKED = 0.15
MASK = len(ALPHABET)
"""The letter that stands for a hidden one."""
UNASKED = -100
"""Label of a letter that is not to be guessed."""


class Bert(nn.Module):
    """Letters and labels of shape (batch, length), int64, to the mean loss of the masked letters, nats."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertForMaskedLM

        config = BertConfig(
            vocab_size=len(ALPHABET) + 1,
            hidden_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=4 * 64,
            max_position_embeddings=LENGTH,
            initializer_range=0.1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.model = BertForMaskedLM(config)

    def forward(self, letters: Tensor, labels: Tensor) -> Tensor:
        return self.model(input_ids=letters, labels=labels).loss


def build_model(seed: int = 0) -> Bert:
    """The network, always with the same first weights."""
    torch.manual_seed(seed)
    return Bert()


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    """The text with some letters masked, and those letters: two tensors (samples, LENGTH), int64."""
    letters = windows(LENGTH, LETTERS)
    hidden = torch.rand(letters.shape, generator=torch.Generator().manual_seed(seed)) < MASKED
    hidden[:, LENGTH // 2] = True
    return letters.masked_fill(hidden, MASK), letters.masked_fill(~hidden, UNASKED)


def job() -> rn.JobRequest:
    """What the swarm is asked for."""
    return rn.JobRequest(
        model=build_model(),
        data=data(),
        loss=None,
        optimizer=rn.AdamW(lr=2e-3, clip_norm=1.0, warmup_updates=60, schedule="cosine"),
        passes=PASSES,
        microbatch_size=32,
        microbatches_per_update=4,
        updates_per_round=20,
        stages=2,
        clusters=1,
        name="BERT on docstrings",
    )


@torch.no_grad()
def judged(model: Bert) -> str:
    """How well it fills in letters, masked otherwise than in training, in words."""
    letters, labels = (column[:512] for column in data(seed=1))
    guessed = model.eval().model(letters).logits.argmax(-1)
    asked = labels != UNASKED
    right = (guessed == labels)[asked].float().mean()
    return f"guesses {100 * right:.0f} % of the masked letters"


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
