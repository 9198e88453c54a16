"""Planning problems made up from what home PCs, their lines and the distances between them are like.

Problem: a planner that is tuned and judged on the same few instances learns these. Solution: any number of
them from seeds, in the format of `ravnest-cluster-instance/1`: the kinds of computers that people lend, lines
whose uplink is often a tenth of the downlink, peers that come and go, and eight regions.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from math import dist
from typing import Any, NamedTuple

from ravnest_p2p.core.planning.instance import FORMAT

GIB = 1 << 30


class Kind(NamedTuple):
    """Computers of one kind.

    Attributes:
        share: of all peers.
        flops: sustained; log-uniform between the two.
        memory_gib: usable; one of these.
    """

    share: float
    flops: tuple[float, float]
    memory_gib: tuple[float, ...]


KINDS = {
    "gpu-top": Kind(0.08, (2.0e13, 6.0e13), (20.4, 20.4, 30.0)),
    "gpu-mid": Kind(0.27, (3.5e12, 1.2e13), (5.1, 6.8, 10.2, 10.2)),
    "gpu-entry": Kind(0.20, (1.0e12, 3.0e12), (3.4, 5.1)),
    "igpu": Kind(0.15, (6.0e11, 2.0e12), (5.5, 9.0, 18.0)),
    "cpu-desktop": Kind(0.15, (2.5e11, 9.0e11), (10.0, 22.0, 44.0)),
    "cpu-laptop": Kind(0.15, (6.0e10, 3.0e11), (3.0, 5.5)),
}

LINES_MBPS = ((0.3, (20.0, 120.0), 0.1), (0.4, (90.0, 500.0), 0.15), (0.3, (300.0, 940.0), 0.6))
"""Share of the lines, their downlinks, and the usual uplink as a share of the downlink."""

REGIONS = {
    "us-west": (0.0, 0.0),
    "us-east": (25.0, 0.0),
    "eu-west": (60.0, 10.0),
    "eu-central": (68.0, 12.0),
    "south-america": (45.0, -70.0),
    "india": (95.0, 45.0),
    "japan": (20.0, 80.0),
    "oceania": (0.0, 100.0),
}
"""Places on a map of one-way milliseconds."""

WITHIN_MS, DETOUR = 8.0, 1.2


class Model(NamedTuple):
    """What a model costs.

    Attributes:
        width, blocks, tokens: of a GPT.
        batch: samples of a micro-batch; round_s: between averagings.
    """

    width: int
    blocks: int
    tokens: int
    batch: int
    round_s: float
    epoch_s: float
    most_stages: int


MODELS = {
    "gpt350m": Model(1024, 24, 256, 4, 900.0, 3600.0, 5),
    "gpt1.3b": Model(2048, 24, 512, 2, 1800.0, 3600.0, 10),
    "gpt6.7b": Model(4096, 32, 512, 1, 7200.0, 14400.0, 16),
}

VOCABULARY = 50_257


def instance(
    model: str,
    peers: int,
    seed: int,
    *,
    layers: int | None = None,
    most_stages: int | None = None,
    churn: float = 1.0,
) -> dict[str, Any]:
    """A planning problem as JSON value.

    Args:
        model: of `MODELS`.
        layers: blocks are joined into so many equal parts; one for each block if None.
        churn: times the usual rate of failures.
    """
    chance = random.Random(f"{model} {peers} {seed}")
    settings = MODELS[model]
    return {
        "format": FORMAT,
        "name": f"{model}-n{peers}-{seed}",
        "model": _gpt(settings, layers or settings.blocks),
        "hyper": {
            "microbatch": settings.batch,
            "window": 12,
            "sync_interval_s": settings.round_s,
            "epoch_s": settings.epoch_s,
            "max_stages": most_stages or settings.most_stages,
            "min_local_iters": 8,
            "min_clusters": 1,
            "stale_gamma": 0.01,
            "similarity_w": 0.01,
            "failover_s": 30.0,
            "recover_s": 900.0,
        },
        "cold_start": True,
        "net": _net(),
        "peers": [_peer(chance, n, churn) for n in range(peers)],
    }


def with_previous(
    problem: Mapping[str, Any], plan: Mapping[str, Any], seed: int, replaced: float
) -> dict[str, Any]:
    """The same problem an epoch later: peers hold what a plan gave them, and some were replaced by others.

    Args:
        plan: of `ravnest-cluster-plan/1`.
        replaced: share of the peers.
    """
    chance = random.Random(f"later {seed}")
    layers, peers = problem["model"]["layers"], [dict(peer) for peer in problem["peers"]]
    for cluster in plan["clusters"]:
        ends = [0, *cluster["cuts"], layers]
        for s, peer in enumerate(cluster["peers"]):
            peers[peer]["prev"] = [ends[s], ends[s + 1]]
    for n in sorted(chance.sample(range(len(peers)), round(replaced * len(peers)))):
        peers[n] = _peer(chance, n, 1.0) | {"id": f"new {n}"}
    return {**problem, "cold_start": False, "peers": peers}


def _gpt(model: Model, parts: int) -> dict[str, Any]:
    """Cost of a GPT's blocks, with embedding and head in the first and the last part."""
    block, table = 12 * model.width**2, VOCABULARY * model.width
    size, rest = divmod(model.blocks, parts)
    blocks = [size + (n < rest) for n in range(parts)]
    params = [count * block for count in blocks]
    params[0] += table
    params[-1] += table
    work = [6.0 * count * block * model.tokens for count in blocks]
    work[-1] += 6.0 * table * model.tokens
    held = 18 * model.tokens * model.width * model.batch
    return {
        "layers": parts,
        "flops_per_sample": work,
        "state_bytes": [16.0 * count for count in params],
        "act_bytes_per_microbatch": [float(count * held) for count in blocks],
        "sync_bytes": [1.0 * count for count in params],
        "move_bytes": [6.0 * count for count in params],
        "out_bytes_per_sample": [1.0 * model.tokens * model.width] * parts,
    }


def _net() -> dict[str, Any]:
    places = list(REGIONS.values())

    def way_ms(a: tuple[float, float], b: tuple[float, float]) -> float:
        return WITHIN_MS + DETOUR * dist(a, b)

    latency = [[round(way_ms(a, b), 1) for b in places] for a in places]
    return {
        "regions": list(REGIONS),
        "latency_ms": latency,
        "flow_cap_mbps": [[round(min(1000.0, 9000.0 / way), 1) for way in row] for row in latency],
    }


def _peer(chance: random.Random, number: int, churn: float) -> dict[str, Any]:
    name = chance.choices(list(KINDS), [kind.share for kind in KINDS.values()])[0]
    kind = KINDS[name]
    _, downlinks, uplink = chance.choices(LINES_MBPS, [line[0] for line in LINES_MBPS])[0]
    down = _log_uniform(chance, *downlinks)
    up = max(2.0, down * uplink * _log_uniform(chance, 0.5, 1.6))
    fails_per_h = churn * _log_uniform(chance, 0.005, 0.5)
    return {
        "id": f"{name} {number}",
        "region": chance.randrange(len(REGIONS)),
        "mem_bytes": int(chance.choice(kind.memory_gib) * GIB),
        "flops": _log_uniform(chance, *kind.flops),
        "up_mbps": round(up, 1),
        "down_mbps": round(down, 1),
        "access_ms": round(_log_uniform(chance, 1.0, 40.0), 1),
        "fail_per_h": round(fails_per_h, 5),
        "uptime": round(1.0 / (1.0 + 2.0 * fails_per_h * chance.random()), 4),
        "prev": None,
        "prev_cluster": None,
    }


def _log_uniform(chance: random.Random, low: float, high: float) -> float:
    value: float = low * (high / low) ** chance.random()
    return value
