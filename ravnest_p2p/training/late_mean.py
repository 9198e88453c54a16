"""A mean of weights that were trained on meanwhile: written into their piece, and taken in as a difference.

Problem: where training goes on beside a round, the mean must not undo what was learned since the snapshot;
what is to be added is mean minus snapshot, and the mean itself, to the bit, is what the piece must hold: that
would be two further copies of all parameters. Solution: the snapshot lies in the piece, which is drafted when
the round begins. Once the mean is there, they change places, tensor by tensor: the mean goes into the file,
and the vector of the weights to go on from keeps the difference.

Buffers take the mean as it is: statistics plus a difference may be none (a variance below zero).
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Protocol

import torch
from torch import Tensor

from ravnest_p2p.training.averaging import parts, renewed
from ravnest_p2p.training.means import Means
from ravnest_p2p.training.momenta import is_momentum, momentum_key
from ravnest_p2p.training.snapshot import buffer_key, param_key


class Draft(Protocol):
    """What `TensorDraft` is: where the snapshot is kept."""

    def __contains__(self, name: object) -> bool: ...

    def replace(self, name: str, values: Tensor) -> Tensor: ...


@torch.no_grad()
def settle(means: Means, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], draft: Draft) -> None:
    """Put the mean into the piece; of parameters, `means.weights` keep themselves minus the snapshot.

    Args:
        params, buffers: asked for names, shapes and dtypes only.
        draft: the piece that has the snapshot.
    """
    vectors = (means.weights, means.mean)
    pairs = zip(*(parts(vector, params, buffers, means.names) for vector in vectors), strict=True)
    for (name, _, part), (_, _, mean) in pairs:
        if (key := _key(name, params)) in draft:
            before = draft.replace(key, mean)
            if name in params:
                part.sub_(before.view(part.shape))


def save(means: Means, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], draft: Draft) -> None:
    """Put the mean into a piece that was drafted with the weights that a stage goes on from."""
    if means.weights is not means.mean:
        for name, _, mean in parts(means.mean, params, buffers, means.names):
            if (key := _key(name, params)) in draft:
                draft.replace(key, mean)


@torch.no_grad()
def take_in(means: Means, params: Mapping[str, Tensor], buffers: MutableMapping[str, Tensor]) -> None:
    """Add what `settle` left in the weights to the parameters; averaged buffers become the mean.

    As for `averaging.scatter`, buffers are new entries of `buffers`.
    """
    for name, tensor, part in parts(means.weights, params, buffers, means.names):
        if name in params:
            tensor.add_(part.to(device=tensor.device, dtype=tensor.dtype))
        else:
            buffers[name] = renewed(tensor, part)


def _key(name: str, params: Mapping[str, Tensor]) -> str:
    """In a piece. It has no moments of parameters that were never stepped."""
    if is_momentum(name):
        return momentum_key(name)
    return param_key(name) if name in params else buffer_key(name)
