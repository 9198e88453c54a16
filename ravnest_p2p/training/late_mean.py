"""A mean of weights that were trained on meanwhile: written into their piece, and taken in as a difference.

Problem: where training goes on beside a round, the mean must not undo what was learned since the snapshot;
what is to be added is mean minus snapshot, and the mean itself, to the bit, is what the piece must hold: that
would be two further copies of all parameters. Solution: the snapshot lies in the piece, which is drafted when
the round begins. Once the mean is there, they change places, tensor by tensor: the mean goes into the file,
and the vector that the round has filled keeps the difference.

Buffers take the mean as it is: statistics plus a difference may be none (a variance below zero).
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ravnest_p2p.training.averaging import parts, renewed
from ravnest_p2p.training.snapshot import buffer_key, param_key


class Draft(Protocol):
    """What `TensorDraft` is: where the snapshot is kept."""

    def replace(self, name: str, values: Tensor) -> Tensor: ...


@torch.no_grad()
def settle(
    flat: Tensor,
    params: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    names: Sequence[str],
    draft: Draft,
) -> None:
    """Put the mean into the piece; of parameters, `flat` keeps mean minus snapshot from here on.

    Args:
        flat: the mean, as `averaging.gather` lays the named tensors out.
        params, buffers: asked for names, shapes and dtypes only.
        draft: the piece that has the snapshot.
    """
    for name, _, part in parts(flat, params, buffers, names):
        if name in params:
            part.sub_(draft.replace(param_key(name), part).view(part.shape))
        else:
            draft.replace(buffer_key(name), part)


@torch.no_grad()
def take_in(
    flat: Tensor, params: Mapping[str, Tensor], buffers: MutableMapping[str, Tensor], names: Sequence[str]
) -> None:
    """Add what `settle` left in `flat` to the parameters; averaged buffers become the mean.

    As for `averaging.scatter`, buffers are new entries of `buffers`.
    """
    for name, tensor, part in parts(flat, params, buffers, names):
        if name in params:
            tensor.add_(part.to(device=tensor.device, dtype=tensor.dtype))
        else:
            buffers[name] = renewed(tensor, part)
