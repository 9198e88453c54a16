"""A convolutional digit classifier and an autoencoder whose decoder is its encoder transposed."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo.case import Case


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv2, self.norm2 = nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.hidden, self.drop, self.head = nn.Linear(32 * 49, 64), nn.Dropout(0.5), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(x)), inplace=True), 2)
        x = F.max_pool2d(F.relu(self.norm2(self.conv2(x)), inplace=True), 2)
        return self.head(self.drop(F.relu(self.hidden(x.flatten(1)))))


class TiedAutoencoder(nn.Module):
    def __init__(self, sizes: tuple[int, ...] = (64, 48, 32, 16)) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(a)) for a in sizes[:-1])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.encoder:
            x = torch.tanh(layer(x))
        for layer, bias in zip(reversed(self.encoder), reversed(self.biases), strict=True):
            x = F.linear(x, layer.weight.t(), bias)
            x = torch.tanh(x) if x.shape[-1] < 64 else x
        return x


def cnn() -> Case:
    return Case(Cnn(), (torch.randn(8, 1, 28, 28),), (torch.randint(10, (8,)),), F.cross_entropy)


def tied_autoencoder() -> Case:
    x = torch.randn(32, 64)
    return Case(TiedAutoencoder(), (x,), (x.clone(),), F.mse_loss)
