"""Tensors on their way into and out of a stage's graphs.

What comes in becomes a leaf on the device, once for as long as it is the same tensor. What goes out is never
written to again: an output may be a live parameter itself, for later stages that use it too (a tied
embedding), and its bytes may still wait to be sent when the weights are stepped in place; so that is a copy,
one for each version of the weights.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ravnest_p2p.core.errors import TensorError
from ravnest_p2p.training.halved import Halved


class Boundary:
    """One stage's; `carried` has the names of parameters that were sent.

    Args:
        params: live weights, by name.
    """

    def __init__(self, params: Mapping[str, Tensor], device: torch.device) -> None:
        self._params = params
        self._device = device
        self.carried: set[str] = set()
        self._sent: dict[str, tuple[int, Tensor]] = {}
        self._leaves: dict[int, tuple[weakref.ref[Tensor], weakref.ref[Tensor]]] = {}

    def leaf(self, place: int, tensor: Tensor) -> Tensor:
        """A received tensor as a graph takes it."""
        source, known = self._leaves.get(place, (lambda: None, lambda: None))
        leaf = known() if source() is tensor else None
        if leaf is None:
            leaf = tensor.detach().to(self._device)
            leaf.requires_grad_(leaf.is_floating_point())
            self._leaves[place] = (weakref.ref(tensor), weakref.ref(leaf))
        return leaf

    def outgoing(self, output: Tensor) -> Tensor:
        """The output as it is sent: detached, contiguous, on the CPU."""
        if isinstance(output, Halved):
            return output.whole().to("cpu").contiguous()
        storage = output.untyped_storage()._cdata
        sharing = [(n, p) for n, p in self._params.items() if p.untyped_storage()._cdata == storage]
        if not sharing:
            return output.detach().to("cpu").contiguous()
        for name, weight in sharing:
            self.carried.add(name)
            if _same_memory(output, weight):
                version, copy = self._sent.get(name, (-1, output))
                if version != weight._version:
                    copy = weight.detach().to("cpu", copy=True).contiguous()
                    self._sent[name] = (weight._version, copy)
                return copy
        return output.detach().to("cpu", copy=True).contiguous()

    def computed(self, output: Tensor, sent: Tensor) -> bool:
        """Whether an output was made of trained values here, rather than handed on as it came."""
        return output.grad_fn is not None and all(sent is not copy for _, copy in self._sent.values())


def roots_of(
    outputs: Sequence[Tensor], gradients: Sequence[Tensor | None], device: torch.device
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs that a backward begins at, and what flows into them.

    Raises:
        TensorError: another number, shape or dtype of gradients than the outputs have.
    """
    if len(gradients) != len(outputs):
        raise TensorError(f"{len(gradients)} gradients for {len(outputs)} outputs")
    roots, seeds = [], []
    for place, (output, gradient) in enumerate(zip(outputs, gradients, strict=True)):
        if gradient is None:
            continue
        if gradient.shape != output.shape or gradient.dtype != output.dtype:
            raise TensorError(
                f"gradient {place} is {gradient.dtype} {tuple(gradient.shape)}, "
                f"the output {output.dtype} {tuple(output.shape)}"
            )
        if output.requires_grad:
            roots.append(output)
            seeds.append(gradient.to(device))
    return roots, seeds


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()
