"""What one half of the channels says of the other, learned while tensors pass.

A full regression costs a matrix product as wide as the tensor. So the channels are in groups, and a group of
the second half is predicted from one group of the first; each tensor teaches one group, in turn, so that
learning costs little too. A step goes towards the least squares of what the prediction lacked (Newton's, or
recursive least squares that forget). Ridge, more of it while little was seen, keeps the prediction from
following noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WHOLE = 48
"""So few channels are one group."""

_WIDEST, _NARROWEST = 32, 16
"""Channels of a group where there are several. Wider ones know more, and cost more for each value."""

_ROWS = 512
"""Vectors of channels that are learned from at once: enough for so few coefficients."""

_WEIGHT = 0.2
"""Of the newest tensor in a group's statistics, once there were five for this group."""

_KEPT = 1 - 2.0**-8
"""Of a group's coefficients, from one of its tensors to the next: what differs between two ends fades."""

_RIDGE = 0.02
"""Share of the mean variance that is added to each channel's."""

_FLOOR = 2.0**-12
"""Channels that are smaller than this share of the largest value predict nothing."""

_MOST = 64.0
"""Largest coefficient. An outlier is not predicted from what is nearly nothing."""


class Regression:
    """Coefficients from `half` channels to as many others.

    Args:
        half: channels.
        width: of a group, as `group_width` gives it.
    Attributes:
        left: mean square of what was left of the second half, as a share of the first's; infinite until
            every group had its turn.
    """

    left = float("inf")

    def __init__(self, half: int, width: int) -> None:
        self._groups = [slice(first, first + width) for first in range(0, half, width)]
        self._coefficients = torch.zeros(len(self._groups), width, width)
        self._squares = torch.zeros(len(self._groups), width, width)
        self._powers = torch.zeros(2, len(self._groups))
        self._turn = 0

    def add(self, second: Tensor, first: Tensor, *, sign: int) -> None:
        """Add to `second`, or with sign -1 take off, what `first` says of it; shapes (rows, half)."""
        for group, coefficients in zip(self._groups, self._coefficients, strict=True):
            second[:, group].addmm_(first[:, group], coefficients, alpha=sign)

    def learn(self, first: Tensor, left: Tensor, largest: float) -> None:
        """From what was left of a second half after `add`.

        Args:
            first, left: shapes (rows, half), float32; squares of them can be added up.
            largest: magnitude in `first`, the same number at both ends.
        """
        turns, number = divmod(self._turn, len(self._groups))
        self._turn += 1
        group, squares = self._groups[number], self._squares[number]
        step = -(-len(first) // _ROWS)
        known, lacked = first[self._turn % step :: step, group], left[self._turn % step :: step, group]
        rows, width = known.shape
        weight = max(_WEIGHT, 1 / (turns + 1))
        squares.lerp_(known.T @ known / rows, weight)
        power = squares.diagonal().mean()
        self._powers[0, number] = power
        self._powers[1, number] = lacked.square().mean()
        if turns:
            totals = self._powers.sum(1)
            self.left = float(totals[1] / totals[0].clamp_min(1e-30))
        ridge = power * (_RIDGE + width * weight / rows) + max((_FLOOR * largest) ** 2, 1e-30)
        missing = torch.linalg.solve(squares + ridge * torch.eye(width), known.T @ lacked / rows)
        self._coefficients[number].mul_(_KEPT).add_(missing, alpha=weight).clamp_(-_MOST, _MOST)


def group_width(half: int) -> int:
    """Channels of a group that divides `half` channels; 0 where no such group is wide enough."""
    if _NARROWEST <= half <= _WHOLE:
        return half
    fitting = (width for width in range(_WIDEST, _NARROWEST - 1, -1) if half % width == 0)
    return next(fitting, 0)
