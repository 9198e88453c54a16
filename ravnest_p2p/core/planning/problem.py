"""A planning problem: one model, how it is trained, the network, and the peers there are.

Problem: the planner, the scorer, the command line and the benchmark must mean the same by a number. Solution:
one immutable form, in base units; `instance` reads it from a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Peer(NamedTuple):
    """What a peer can do.

    Attributes:
        region: index into the network's tables.
        memory_bytes: usable ones of its device.
        host_bytes: usable ones beside it, in which what is held for micro-batches in flight may lie.
        flops: sustained, a second.
        up_bytes_s, down_bytes_s: bytes a second.
        access_s: what its own line adds to each way.
        fails_per_s: expected failures a second.
        uptime: share of the time that it is there.
        held: layers [lo, hi) that it held in the last epoch; (0, 0) for none.
    """

    name: str
    region: int
    memory_bytes: float
    host_bytes: float
    flops: float
    up_bytes_s: float
    down_bytes_s: float
    access_s: float
    fails_per_s: float
    uptime: float
    held: tuple[int, int]

    @property
    def bytes_s(self) -> float:
        """Of its slower direction, bytes a second."""
        return min(self.up_bytes_s, self.down_bytes_s)


@dataclass(frozen=True, slots=True)
class Layers:
    """Sums over the layers before each cut, so that a range of layers costs a difference.

    Attributes: lists of length L + 1, for cuts 0 to L.
        work: floating-point operations of one micro-batch, forward and backward.
        sync_bytes: on the wire for an averaging.
        move_bytes: to fetch where a peer newly takes a layer.
        state_bytes: parameters, gradients, optimizer.
        held_bytes: the state, and what a full window of micro-batches holds.
        crossing: bytes of a micro-batch over each cut itself, in each direction; 0 at both ends.
    """

    count: int
    work: tuple[float, ...]
    sync_bytes: tuple[float, ...]
    move_bytes: tuple[float, ...]
    state_bytes: tuple[float, ...]
    held_bytes: tuple[float, ...]
    crossing: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Rules:
    """How the model is trained, and what the objective weighs.

    Attributes:
        microbatch: samples.
        window: micro-batches in flight.
        round_s: training between two averagings.
        epoch_s: until the next plan.
        least_stages, most_stages: of a cluster.
        least_clusters, most_clusters: of a plan.
        slowest_s: longest time from one micro-batch to the next with which a cluster counts.
        stage_discount: of a cluster's worth for each stage but one.
        spread_discount: for each unit of standard deviation of log2 of its peers' speeds and links.
        failover_s, recover_s: a failure's cost with a standby, and without.
        standby_quota: standbys for each primary, at least.
        moves_are_free: nobody holds anything yet.
    """

    microbatch: float
    window: float
    round_s: float
    epoch_s: float
    least_stages: int
    most_stages: int
    least_clusters: int
    most_clusters: int
    slowest_s: float
    stage_discount: float
    spread_discount: float
    failover_s: float
    recover_s: float
    standby_quota: float
    moves_are_free: bool


@dataclass(frozen=True, slots=True)
class Problem:
    """All that a plan is judged by.

    Attributes:
        latency_s: one way between two regions.
        flow_bytes_s: most that one flow between two regions carries, bytes a second.
    """

    layers: Layers
    rules: Rules
    latency_s: tuple[tuple[float, ...], ...]
    flow_bytes_s: tuple[tuple[float, ...], ...]
    peers: tuple[Peer, ...]

    def fits(self, i: int, lo: int, hi: int) -> bool:
        """Whether peer i can hold layers [lo, hi)."""
        layers, peer = self.layers, self.peers[i]
        return (
            layers.state_bytes[hi] - layers.state_bytes[lo] <= peer.memory_bytes
            and layers.held_bytes[hi] - layers.held_bytes[lo] <= peer.memory_bytes + peer.host_bytes
        )

    def way_s(self, a: int, b: int) -> float:
        """One way from peer a to peer b."""
        one, other = self.peers[a], self.peers[b]
        return self.latency_s[one.region][other.region] + one.access_s + other.access_s

    def flow_between(self, a: int, b: int) -> float:
        """Most that one flow from peer a to peer b carries, bytes a second."""
        return self.flow_bytes_s[self.peers[a].region][self.peers[b].region]
