"""MobileNetV3-Small (arXiv 1905.02244): inverted residuals, squeeze-and-excitation, hard swish."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo.case import Case, image_case

# kernel, expansion, output channels, squeeze-and-excitation, hard swish (else ReLU), stride
SMALL = (
    (3, 16, 16, True, False, 2),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
)


def conv_norm(inside: int, outside: int, kernel: int, stride: int, groups: int, act: nn.Module) -> nn.Module:
    convolution = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outside, eps=0.001, momentum=0.01), act)


class SqueezeExcitation(nn.Module):
    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(width, squeezed, 1), nn.Conv2d(squeezed, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.hardsigmoid(self.fc2(F.relu(self.fc1(self.pool(x)), inplace=True))) * x


class InvertedResidual(nn.Module):
    def __init__(
        self, inside: int, kernel: int, expanded: int, outside: int, squeeze: bool, swish: bool, stride: int
    ) -> None:
        super().__init__()
        self.residual = stride == 1 and inside == outside
        activation = nn.Hardswish if swish else nn.ReLU
        parts: list[nn.Module] = []
        if expanded != inside:
            parts.append(conv_norm(inside, expanded, 1, 1, 1, activation(inplace=True)))
        parts.append(conv_norm(expanded, expanded, kernel, stride, expanded, activation(inplace=True)))
        if squeeze:
            parts.append(SqueezeExcitation(expanded, max(4, expanded // 4)))
        parts.append(conv_norm(expanded, outside, 1, 1, 1, nn.Identity()))
        self.block = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        if self.residual:
            y += x
        return y


class MobileNetV3(nn.Module):
    def __init__(self, divisor: int = 2, classes: int = 10) -> None:
        super().__init__()
        inside = 16 // divisor
        parts = [conv_norm(3, inside, 3, 2, 1, nn.Hardswish(inplace=True))]
        for kernel, expanded, outside, squeeze, swish, stride in SMALL:
            parts.append(
                InvertedResidual(
                    inside, kernel, expanded // divisor, outside // divisor, squeeze, swish, stride
                )
            )
            inside = outside // divisor
        parts.append(conv_norm(inside, 6 * inside, 1, 1, 1, nn.Hardswish(inplace=True)))
        self.features, self.avgpool = nn.Sequential(*parts), nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(6 * inside, 128),
            nn.Hardswish(inplace=True),
            nn.Dropout(0.2, inplace=True),
            nn.Linear(128, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def mobilenet_v3() -> Case:
    return image_case(MobileNetV3(), F.cross_entropy, size=64)
