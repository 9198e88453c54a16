"""ConvNeXt-Tiny (arXiv 2201.03545): 3, 3, 9 and 3 blocks, layer scale, stochastic depth by row."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo.case import Case, image_case


class ChannelNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


def stochastic_depth(x: Tensor, chance: float) -> Tensor:
    """Zero whole samples, as torchvision.ops.stochastic_depth in mode "row" does."""
    if chance == 0.0:
        return x
    noise = torch.empty([x.shape[0]] + [1] * (x.ndim - 1), dtype=x.dtype, device=x.device)
    noise = noise.bernoulli_(1.0 - chance)
    noise.div_(1.0 - chance)
    return x * noise


class Block(nn.Module):
    def __init__(self, width: int, chance: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.layer_scale = nn.Parameter(torch.full((width, 1, 1), 1e-6))
        self.chance = chance

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.down(F.gelu(self.up(y))).permute(0, 3, 1, 2)
        return x + stochastic_depth(self.layer_scale * y, self.chance if self.training else 0.0)


class ConvNeXt(nn.Module):
    def __init__(self, depths: tuple[int, ...], widths: tuple[int, ...], classes: int = 10) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 4), ChannelNorm(widths[0], eps=1e-6)]
        done, total = 0, sum(depths)
        for index, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            if index:
                before = widths[index - 1]
                parts += [ChannelNorm(before, eps=1e-6), nn.Conv2d(before, width, 2, 2)]
            parts += [Block(width, 0.1 * (done + i) / (total - 1)) for i in range(depth)]
            done += depth
        self.features = nn.Sequential(*parts)
        self.norm, self.head = ChannelNorm(widths[-1], eps=1e-6), nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.features(x), 1)
        return self.head(self.norm(x).flatten(1))


def convnext() -> Case:
    return image_case(ConvNeXt((3, 3, 9, 3), (12, 24, 48, 96)), F.cross_entropy, size=64)
