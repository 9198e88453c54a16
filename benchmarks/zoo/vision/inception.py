"""Inception-V3 (arXiv 1512.00567, as in torchvision), its auxiliary head weighed by 0.4 in the loss.

The image keeps its 299 pixels: the auxiliary head needs the 17×17 map that follows from it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo.case import Case, image_case

Pair = tuple[int, int]


class ConvNorm(nn.Module):
    def __init__(
        self,
        inside: int,
        outside: int,
        kernel: int | Pair,
        stride: int = 1,
        padding: int | Pair = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outside, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Branches(nn.Module):
    """Branches side by side; a branch that starts with a pooling is written as one."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def chain(inside: int, *parts: Any) -> nn.Sequential:
    """ConvNorms one after another, each (outputs, kernel, padding[, stride])."""
    layers = []
    for outside, kernel, padding, *stride in parts:
        layers.append(ConvNorm(inside, outside, kernel, *stride or [1], padding=padding))
        inside = outside
    return nn.Sequential(*layers)


def pooled(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(nn.AvgPool2d(3, 1, 1), ConvNorm(inside, outside, 1))


def inception_a(n: int, unit: int, pool: int) -> Branches:
    return Branches(
        chain(n, (4 * unit, 1, 0)),
        chain(n, (3 * unit, 1, 0), (4 * unit, 5, 2)),
        chain(n, (4 * unit, 1, 0), (6 * unit, 3, 1), (6 * unit, 3, 1)),
        pooled(n, pool),
    )


def inception_b(n: int, unit: int) -> Branches:
    return Branches(
        chain(n, (24 * unit, 3, 0, 2)),
        chain(n, (4 * unit, 1, 0), (6 * unit, 3, 1), (6 * unit, 3, 0, 2)),
        nn.MaxPool2d(3, 2),
    )


def inception_c(n: int, unit: int, c: int) -> Branches:
    wide, tall = ((1, 7), (0, 3)), ((7, 1), (3, 0))
    return Branches(
        chain(n, (12 * unit, 1, 0)),
        chain(n, (c, 1, 0), (c, *wide), (12 * unit, *tall)),
        chain(n, (c, 1, 0), (c, *tall), (c, *wide), (c, *tall), (12 * unit, *wide)),
        pooled(n, 12 * unit),
    )


def inception_d(n: int, unit: int) -> Branches:
    wide, tall = ((1, 7), (0, 3)), ((7, 1), (3, 0))
    c = 12 * unit
    return Branches(
        chain(n, (c, 1, 0), (20 * unit, 3, 0, 2)),
        chain(n, (c, 1, 0), (c, *wide), (c, *tall), (c, 3, 0, 2)),
        nn.MaxPool2d(3, 2),
    )


def inception_e(n: int, unit: int) -> Branches:
    c = 24 * unit
    return Branches(
        chain(n, (20 * unit, 1, 0)),
        nn.Sequential(chain(n, (c, 1, 0)), _forked(c)),
        nn.Sequential(chain(n, (28 * unit, 1, 0), (c, 3, 1)), _forked(c)),
        pooled(n, 12 * unit),
    )


def _forked(c: int) -> Branches:
    return Branches(ConvNorm(c, c, (1, 3), padding=(0, 1)), ConvNorm(c, c, (3, 1), padding=(1, 0)))


class Auxiliary(nn.Module):
    def __init__(self, inside: int, unit: int, classes: int) -> None:
        super().__init__()
        self.conv0, self.conv1 = ConvNorm(inside, 8 * unit, 1), ConvNorm(8 * unit, 48 * unit, 5)
        self.fc = nn.Linear(48 * unit, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(self.conv0(F.avg_pool2d(x, 5, 3)))
        return self.fc(F.adaptive_avg_pool2d(x, (1, 1)).flatten(1))


class InceptionV3(nn.Module):
    """A `unit` of 16 gives the widths of the original."""

    def __init__(self, unit: int, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            chain(3, (2 * unit, 3, 0, 2), (2 * unit, 3, 0), (4 * unit, 3, 1)),
            nn.MaxPool2d(3, 2),
            chain(4 * unit, (5 * unit, 1, 0), (12 * unit, 3, 0)),
            nn.MaxPool2d(3, 2),
        )
        self.mixed5 = nn.Sequential(
            inception_a(12 * unit, unit, 2 * unit),
            inception_a(16 * unit, unit, 4 * unit),
            inception_a(18 * unit, unit, 4 * unit),
        )
        self.mixed6 = nn.Sequential(
            inception_b(18 * unit, unit),
            *(inception_c(48 * unit, unit, c * unit) for c in (8, 10, 10, 12)),
        )
        self.auxiliary = Auxiliary(48 * unit, unit, classes)
        self.mixed7 = nn.Sequential(
            inception_d(48 * unit, unit), inception_e(80 * unit, unit), inception_e(128 * unit, unit)
        )
        self.dropout, self.fc = nn.Dropout(0.5), nn.Linear(128 * unit, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.mixed6(self.mixed5(self.stem(x)))
        auxiliary = self.auxiliary(x)
        x = F.adaptive_avg_pool2d(self.mixed7(x), (1, 1))
        return self.fc(self.dropout(x).flatten(1)), auxiliary


def both_heads(outputs: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
    main, auxiliary = outputs
    return F.cross_entropy(main, labels) + 0.4 * F.cross_entropy(auxiliary, labels)


def inception_v3() -> Case:
    return image_case(InceptionV3(unit=2), both_heads, size=299)
