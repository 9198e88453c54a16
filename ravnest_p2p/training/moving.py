"""Let weights be stepped between a forward and its backward, which then goes through what they are by then.

Problem: that is what training without any correction of staleness does, to be compared with; autograd refuses
it, and rightly: what comes out is the gradient of neither weights. Solution: where an operation saves a
weight, or a view of one, autograd is given its place in memory to keep instead of the tensor.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def through_live(weights: Iterable[Tensor]) -> saved_tensors_hooks:
    """Forwards in this context do not mind that these weights change before the backward."""
    owners = {weight.untyped_storage()._cdata: weight for weight in weights}

    def pack(tensor: Tensor) -> Any:
        weight = owners.get(tensor.untyped_storage()._cdata)
        if weight is None:
            return tensor
        return weight, tensor.size(), tensor.stride(), tensor.storage_offset()

    def unpack(kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        weight, *place = kept
        found: Tensor = weight.detach().as_strided(*place)
        return found

    return saved_tensors_hooks(pack, unpack)
