"""A plan on paper: clusters of peers in pipeline order, their cuts, standbys, and the rings of clusters.

The JSON is that of `ravnest-cluster-plan/1`. Peers are indices into a problem's; what a plan is worth, and
whether it is feasible, `objective` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ravnest_p2p.core.errors import PlanningProblemError

FORMAT = "ravnest-cluster-plan/1"


@dataclass(frozen=True, slots=True)
class Cluster:
    """One copy of the model.

    Attributes:
        peers: in pipeline order.
        cuts: first layer of each stage but the first, ascending.
    """

    peers: tuple[int, ...]
    cuts: tuple[int, ...]

    def ranges(self, layers: int) -> list[tuple[int, int]]:
        """Layers [lo, hi) of each stage."""
        ends = [0, *self.cuts, layers]
        return list(pairwise(ends))


@dataclass(frozen=True, slots=True)
class Layout:
    """A plan.

    Attributes:
        standbys: (standby, primary), each peer once.
        order: of the clusters in the rings.
        columns: as many as clusters is one flat ring, fewer a grid of two levels, filled row by row.
    """

    clusters: tuple[Cluster, ...]
    standbys: tuple[tuple[int, int], ...] = ()
    order: tuple[int, ...] = ()
    columns: int = 1

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "clusters": [{"peers": list(c.peers), "cuts": list(c.cuts)} for c in self.clusters],
            "backups": [list(pair) for pair in self.standbys],
            "ring": {"order": list(self.order), "cols": self.columns},
        }


def parse_layout(value: Any) -> Layout:
    """A plan from its JSON value; whether it fits a problem is another question.

    Raises:
        PlanningProblemError: it is malformed.
    """
    try:
        ring: Mapping[str, Any] = value.get("ring") or {"order": [], "cols": 1}
        return Layout(
            tuple(Cluster(_whole(one["peers"]), _whole(one["cuts"])) for one in value["clusters"]),
            tuple(_pair(pair) for pair in value.get("backups", [])),
            _whole(ring["order"]),
            _whole([ring["cols"]])[0],
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise PlanningProblemError(f"this is no plan of {FORMAT}: {error!r}") from None


def _whole(values: Any) -> tuple[int, ...]:
    if any(isinstance(value, bool) or not isinstance(value, int) for value in values):
        raise ValueError("a peer, a cut or a column is no whole number")
    return tuple(values)


def _pair(values: Any) -> tuple[int, int]:
    standby, primary = _whole(values)
    return standby, primary
