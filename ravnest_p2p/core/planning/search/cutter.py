"""The best cuts for peers in a given order, one cluster at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ravnest_p2p.core.planning.layout import Cluster
from ravnest_p2p.core.planning.search.kernels import ANY, NEAR, cluster_value, workspace
from ravnest_p2p.core.planning.search.tables import Ints, Tables


class Cutter:
    """Of one problem."""

    def __init__(self, t: Tables) -> None:
        self._t = t
        self._workspace = workspace(t, t.layers.shape[0] - 1)

    def cut(self, order: Sequence[int] | Ints, transfer_s: float) -> tuple[float, Cluster | None]:
        """What such a cluster is worth without standbys, and itself; 0 and None where nothing fits.

        Args:
            order: peers in pipeline order.
            transfer_s: Q, see `kernels`.
        """
        peers = np.asarray(order, np.int64)
        if peers.size >= self._t.layers.shape[0]:
            return 0.0, None
        value = float(cluster_value(self._t, peers, peers.size, transfer_s, ANY, NEAR, *self._workspace))
        if value <= 0.0:
            return 0.0, None
        inner = self._workspace[0][1 : peers.size]
        return value, Cluster(tuple(map(int, peers)), tuple(map(int, inner)))
