"""ResNet-50 with narrow layers, which reads handwritten digits, trained by a swarm.

    python examples/resnet50/train.py                     # through the ravnestd on this computer
    python examples/resnet50/train.py /ip4/…/p2p/12D3…    # through any peer
    ravnest submit examples/resnet50/train.py --follow    # only submit and watch

All 50 layers of arXiv 1512.03385, with the stride in the 3×3 convolution as in torchvision; an eighth as
wide, and with a first layer for small images. The data is scikit-learn's: 1,797 digits of 8×8 pixels.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import ravnest_p2p as rn

WIDTH = 8
DEPTHS = (3, 4, 6, 3)
PASSES = 8


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolution, each with BatchNorm, added to what they read."""

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        outside = 4 * width
        self.main = nn.Sequential(
            *(nn.Conv2d(inside, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, outside, 1, bias=False), nn.BatchNorm2d(outside)),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.main(x) + self.shortcut(x))


class ResNet50(nn.Module):
    """Images of shape (batch, 1, 8, 8), float32, to logits of shape (batch, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU()
        )
        blocks: list[nn.Module] = []
        inside = WIDTH
        for stage, depth in enumerate(DEPTHS):
            for block in range(depth):
                blocks.append(Bottleneck(inside, WIDTH << stage, 2 if stage and not block else 1))
                inside = 4 * (WIDTH << stage)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inside, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def build_model(seed: int = 0) -> ResNet50:
    """The network, always with the same first weights."""
    torch.manual_seed(seed)
    return ResNet50()


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
        loss=F.cross_entropy,
        optimizer=rn.AdamW(lr=3e-3, weight_decay=1e-2, warmup_updates=10, schedule="cosine"),
        passes=PASSES,
        microbatch_size=32,
        microbatches_per_update=2,
        updates_per_round=20,
        stages=2,
        clusters=1,
        name="ResNet-50 on digits",
    )


@torch.no_grad()
def judged(model: ResNet50) -> str:
    """Share of the test digits that the model reads right, in words."""
    _, (images, labels) = data()
    right = model.eval()(images).argmax(1) == labels
    return f"reads {100 * right.float().mean():.1f} % of the test digits right"


def main() -> None:
    model = build_model()
    with rn.connect(*sys.argv[1:]) as swarm:
        running = swarm.submit_request(job(), say=print)
        for progress in running.follow():
            loss = "–" if progress.loss is None else f"{progress.loss:.4f}"
            done = f"{progress.batches_done}/{progress.total_batches} batches"
            print(f"{progress.phase.value}: {done}, loss {loss}")
        model.load_state_dict(running.result())
    print(judged(model))


if __name__ == "__main__":
    main()
