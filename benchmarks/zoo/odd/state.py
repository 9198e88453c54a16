"""State outside of parameters: counters, caches, buffers, chance."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo.case import Case
from benchmarks.zoo.odd.base import WIDTH, Odd, case, odd, wrapped


class Counting(Odd):
    count = 0

    def middle(self, h: Tensor) -> Tensor:
        self.count += 1
        return h * self.count


class CountingLate(Odd):
    """Warm-up by a counter that acts long after the first steps."""

    count = 0

    def middle(self, h: Tensor) -> Tensor:
        self.count += 1
        return h if self.count > 3 else h.relu()


class BufferInPlace(Odd):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(WIDTH))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def middle(self, h: Tensor) -> Tensor:
        self.steps += 1
        self.average.mul_(0.9).add_(h.detach().mean(0), alpha=0.1)
        return h - self.average / self.steps


class BufferAssigned(BufferInPlace):
    def middle(self, h: Tensor) -> Tensor:
        self.average = 0.9 * self.average + 0.1 * h.detach().mean(0)
        return h - self.average


class KeptTensor(Odd):
    """A plain tensor attribute carried from step to step."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = torch.zeros(WIDTH)

    def middle(self, h: Tensor) -> Tensor:
        h = h + self.kept
        self.kept = h.detach().mean(0)
        return h


class LazyCache(Odd):
    def __init__(self) -> None:
        super().__init__()
        self.mask: Tensor | None = None

    def middle(self, h: Tensor) -> Tensor:
        if self.mask is None:
            self.mask = torch.ones_like(h).tril()
        return h * self.mask


class MovingTeacher(Odd):
    """Frozen weights that follow the trained ones in forward(), as in MoCo and BYOL."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Linear(WIDTH, WIDTH).requires_grad_(False)

    def middle(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            self.teacher.weight.mul_(0.99).add_(self.first.weight, alpha=0.01)
        return h - self.teacher(h)


class ClampedWeight(Odd):
    def middle(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            self.last.weight.clamp_(-1e6, 1e6)
        return h


class SelfSwitching(Odd):
    def middle(self, h: Tensor) -> Tensor:
        h = F.dropout(h, 0.5, self.training)
        self.eval()
        return h


def python_random(self: Odd, h: Tensor) -> Tensor:
    return h * 2 if random.random() < 0.999 else h


def numpy_random(self: Odd, h: Tensor) -> Tensor:
    return h + float(numpy.random.rand())


_SEEN: list[int] = []


def global_counter(self: Odd, h: Tensor) -> Tensor:
    _SEEN.append(1)
    return h * len(_SEEN)


def torch_random(self: Odd, h: Tensor) -> Tensor:
    noisy = h + 0.1 * torch.randn_like(h) + torch.rand(h.shape[0], 1)
    return noisy * torch.bernoulli(torch.full_like(h, 0.5)) + F.gumbel_softmax(h, tau=1.0)


def vae_normal(self: Odd, h: Tensor) -> Tensor:
    return h + torch.distributions.Normal(h.tanh(), h.exp().clamp(max=2)).rsample()


class FrozenNorm(Odd):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(WIDTH), nn.Dropout(0.5)
        self.norm.eval(), self.drop.eval()

    def middle(self, h: Tensor) -> Tensor:
        return self.drop(self.norm(h))


CASES: dict[str, Callable[[], Case]] = {
    "python_counter": lambda: case(Counting()),
    "late_python_counter": lambda: case(CountingLate()),
    "buffer_written_in_place": lambda: case(BufferInPlace()),
    "buffer_assigned": lambda: case(BufferAssigned()),
    "tensor_kept_between_steps": lambda: case(KeptTensor()),
    "lazy_mask_cache": lambda: case(LazyCache()),
    "moving_average_teacher": lambda: case(MovingTeacher()),
    "clamped_weight": lambda: case(ClampedWeight()),
    "switches_itself_to_eval": lambda: case(SelfSwitching()),
    "frozen_norm_and_dropout": lambda: case(FrozenNorm()),
    "batchnorm_cumulative": wrapped(lambda: nn.BatchNorm1d(WIDTH, momentum=None)),
    **{f.__name__: odd(f) for f in (python_random, numpy_random, global_counter, torch_random, vae_normal)},
}
