"""U-Net (arXiv 1505.04597, with padding and BatchNorm): four skips, predicting a class for each pixel."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo.case import Case


def double_conv(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1, bias=False),
        nn.BatchNorm2d(outside),
        nn.ReLU(inplace=True),
        nn.Conv2d(outside, outside, 3, padding=1, bias=False),
        nn.BatchNorm2d(outside),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    def __init__(self, width: int = 8, depth: int = 4, classes: int = 3) -> None:
        super().__init__()
        widths = [width << i for i in range(depth + 1)]
        pairs = list(pairwise(widths))
        self.stem = double_conv(3, width)
        self.downs = nn.ModuleList(double_conv(a, b) for a, b in pairs)
        self.ups = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in reversed(pairs))
        self.merges = nn.ModuleList(double_conv(b, a) for a, b in reversed(pairs))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        skips = []
        for down in self.downs:
            skips.append(x)
            x = down(F.max_pool2d(x, 2))
        for up, merge in zip(self.ups, self.merges, strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], dim=1))
        return self.head(x)


def unet() -> Case:
    labels = torch.randint(3, (2, 32, 32))
    return Case(UNet(), (torch.randn(2, 3, 32, 32),), (labels,), F.cross_entropy)
