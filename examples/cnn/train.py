"""A small convolutional network (BatchNorm, Dropout) that reads handwritten digits, trained by a swarm.

    python examples/cnn/train.py                     # through the ravnestd on this computer
    python examples/cnn/train.py /ip4/…/p2p/12D3…    # through any peer
    ravnest submit examples/cnn/train.py --follow    # only submit and watch

The data is scikit-learn's: 1,797 digits of 8×8 pixels. Reaches about 98 % on the fifth that is kept for
testing.
"""

from __future__ import annotations

import sys

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import ravnest_p2p as rn

PASSES = 20
MICROBATCH_SIZE = 16
MICROBATCHES_PER_UPDATE = 4


def build_model(seed: int = 0) -> nn.Module:
    """The network; digits of shape (batch, 1, 8, 8), float32, to logits of shape (batch, 10)."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.25),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Dropout(0.25),
        nn.Linear(64, 10),
    )


def data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(images, labels) to train on and to test with: a fixed split, normalised by the training part."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    cut = len(images) * 4 // 5
    train, test = order[:cut], order[cut:]
    mean, std = images[train].mean(), images[train].std()
    images = (images - mean) / std
    return (images[train], labels[train]), (images[test], labels[test])


def job() -> rn.JobRequest:
    """What the swarm is asked for."""
    train, _ = data()
    return rn.JobRequest(
        model=build_model(),
        data=train,
        loss=nn.functional.cross_entropy,
        optimizer=rn.AdamW(lr=3e-3, weight_decay=1e-2),
        passes=PASSES,
        microbatch_size=MICROBATCH_SIZE,
        microbatches_per_update=MICROBATCHES_PER_UPDATE,
        updates_per_round=10,
        name="cnn on digits",
    )


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """Share of the test digits that the model reads right."""
    _, (images, labels) = data()
    right = model.eval()(images).argmax(1) == labels
    return float(right.float().mean())


def main() -> None:
    model = build_model()
    with rn.connect(*sys.argv[1:]) as swarm:
        running = swarm.submit_request(job(), say=print)
        for progress in running.follow():
            loss = "–" if progress.loss is None else f"{progress.loss:.4f}"
            done = f"{progress.batches_done}/{progress.total_batches} batches"
            print(f"{progress.phase.value}: {done}, loss {loss}")
        model.load_state_dict(running.result())
    print(f"test accuracy: {accuracy(model):.4f}")


if __name__ == "__main__":
    main()
