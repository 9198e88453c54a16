"""Control flow, masks and shapes that depend on values; writes in place; types that do not travel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.zoo.case import Case
from benchmarks.zoo.odd.base import Odd, odd


def data_dependent_if(self: Odd, h: Tensor) -> Tensor:
    return h.relu() if h.sum() > 0 else h


def data_dependent_loop(self: Odd, h: Tensor) -> Tensor:
    while h.norm() > 1:
        h = h / 2
    return h


def assertion(self: Odd, h: Tensor) -> Tensor:
    assert h.max() < 1e9
    return h


def item(self: Odd, h: Tensor) -> Tensor:
    return h * h.detach().abs().max().item()


def to_numpy(self: Odd, h: Tensor) -> Tensor:
    return h * torch.from_numpy(h.detach().numpy().mean(0))


def to_list(self: Odd, h: Tensor) -> Tensor:
    return h + sum(h[0].tolist())


def boolean_mask(self: Odd, h: Tensor) -> Tensor:
    return h + h[h > 0].mean()


def boolean_mask_assignment(self: Odd, h: Tensor) -> Tensor:
    h = h.clone()
    h[h < 0] = 0.5
    return h


def nonzero(self: Odd, h: Tensor) -> Tensor:
    return h + h[(h[:, 0] > 0).nonzero().squeeze(1)].sum()


def unique(self: Odd, h: Tensor) -> Tensor:
    return h * torch.unique((h > 0).long()).numel()


def where_and_topk(self: Odd, h: Tensor) -> Tensor:
    best = h.topk(3, dim=1)
    kept = torch.zeros_like(h).scatter(1, best.indices, best.values)
    return torch.where(h > 0, kept, h * 0.1)


def expert_routing(self: Odd, h: Tensor) -> Tensor:
    choice = h[:, :2].argmax(1)
    out = torch.zeros_like(h)
    for expert in range(2):
        rows = (choice == expert).nonzero().squeeze(1)
        out[rows] = h[rows] * (expert + 1)
    return out


def in_place_chain(self: Odd, h: Tensor) -> Tensor:
    h = h.clone()
    h[:, 0] = 0
    h[1:3].mul_(2)
    h += 1
    h.view(-1)[3:5] = h.sum()
    return h.relu_()


def in_place_on_piece(self: Odd, h: Tensor) -> Tensor:
    with torch.no_grad():
        left, right = (h * 2).chunk(2, 1)
        left.mul_(3)
    return h + torch.cat([right, left], 1)


def slices_and_strides(self: Odd, h: Tensor) -> Tensor:
    even, odd_columns = h[:, ::2], h[:, 1::2]
    return torch.stack([odd_columns, even.flip(1)], -1).reshape(h.shape)


def autocast_inside(self: Odd, h: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return (h @ h.t() @ h).float()


def autocast_disabled(self: Odd, h: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return h.tanh()


def bfloat16_inside(self: Odd, h: Tensor) -> Tensor:
    return (h.bfloat16() * 2).relu().float() + h.half().to(h)


def float64_inside(self: Odd, h: Tensor) -> Tensor:
    return h.double().logsumexp(1, keepdim=True).float() * h


def complex_rotary(self: Odd, h: Tensor) -> Tensor:
    pairs = torch.view_as_complex(h.reshape(4, 4, 2).contiguous())
    turned = pairs * torch.polar(torch.ones(4), torch.arange(4.0))
    return torch.view_as_real(turned).flatten(1)


def fourier(self: Odd, h: Tensor) -> Tensor:
    return torch.fft.rfft(h).abs().mean(1, keepdim=True) * h


def einsum(self: Odd, h: Tensor) -> Tensor:
    outer = torch.einsum("bi,bj->bij", h, h.tanh())
    return torch.einsum("bij,bj->bi", outer, h) + torch.einsum("bi,ji->bj", h, self.first.weight)


def device_moves(self: Odd, h: Tensor) -> Tensor:
    table = torch.arange(h.shape[1], device=h.device).to(h.device, h.dtype)
    return h.cpu() + table.type_as(h).to(h.device)


def sparse_product(self: Odd, h: Tensor) -> Tensor:
    return torch.sparse.mm(torch.eye(4).to_sparse(), h)


CASES: dict[str, Callable[[], Case]] = {
    f.__name__: odd(f)
    for f in (
        data_dependent_if,
        data_dependent_loop,
        assertion,
        item,
        to_numpy,
        to_list,
        boolean_mask,
        boolean_mask_assignment,
        nonzero,
        unique,
        where_and_topk,
        expert_routing,
        in_place_chain,
        in_place_on_piece,
        slices_and_strides,
        autocast_inside,
        autocast_disabled,
        bfloat16_inside,
        float64_inside,
        complex_rotary,
        fourier,
        einsum,
        device_moves,
        sparse_product,
    )
}
