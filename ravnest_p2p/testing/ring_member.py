"""One member of averagings as a process of its own: a p2pd, links, and a stage's `RingExchange`; no training.

`python -m ravnest_p2p.testing.ring_member` talks in lines of JSON. It hears {"cluster", "stage", "cuts",
"layers", "address"}, where `layers` are elements and `cuts` those of every cluster; says its peer and
addresses; hears everybody's; says that it is connected, and hears that all are; at each {"go": number} fills
its tensors with 2^cluster, says so, averages at the next line, and says how long that took, what was sent,
what came out and who was lost. With "dies_after" it kills itself by SIGKILL instead, once it has the means of
so many chunks.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvloop

from ravnest_p2p.core.errors import PeerUnreachableError
from ravnest_p2p.core.types import ClusterPlan, Generation, JobId, JobPlan, PeerId, StageAssignment
from ravnest_p2p.daemon.worker.averaging import RingExchange
from ravnest_p2p.network.direct import Direct
from ravnest_p2p.network.identity import Identity
from ravnest_p2p.network.link_server import LinkServer
from ravnest_p2p.network.p2pd import P2PDaemon, connect
from ravnest_p2p.network.p2pd_config import P2PDConfig
from ravnest_p2p.training import averaging

GENERATION = Generation(1, 1, "bench")
TRIES, PAUSE_S = 5, 3.0
FEW, DIGITS = 5, 4
"""Different values of a result that are told, and how exactly: each way rounds its sums in its own order."""


def say(**what: Any) -> None:
    """One line to who started this process."""
    print(json.dumps(what), flush=True)


def hear() -> dict[str, Any]:
    """The next line from there; {} at the end."""
    line = sys.stdin.readline()
    found: dict[str, Any] = json.loads(line) if line else {}
    return found


def main() -> None:
    torch.set_num_threads(1)
    uvloop.install()
    with tempfile.TemporaryDirectory(prefix="averaging-") as folder:
        asyncio.run(_run(Path(folder), hear()))


async def _run(folder: Path, told: dict[str, Any]) -> None:
    cluster, stage = told["cluster"], told["stage"]
    Identity.load_or_create(folder / "identity")
    listen = (f"/ip4/{told['address']}/tcp/0",)
    daemon = P2PDaemon(P2PDConfig(folder / "identity", folder, folder / "p2pd.log", listen))
    await daemon.start()
    thread = ThreadPoolExecutor(1)

    async def compute(work: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(thread, work)

    listener = socket.create_server((told["address"], 0))
    hosts: dict[PeerId, str] = {}

    async def reach(peer: PeerId, port: int) -> socket.socket:
        connection = socket.socket()
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, (hosts[peer], port))
        return connection

    server = LinkServer(daemon.p2p, GENERATION, Direct(listener, reach) if told.get("direct", True) else None)
    nonce = await server.start()
    say(host=told["address"], peer=daemon.peer_id, addresses=await daemon.addresses(), nonce=nonce)
    peers = (await _hear_aside())["peers"]
    for other in peers:
        hosts[PeerId(other["peer"])] = other["host"]
        if other["peer"] < daemon.peer_id:
            address = next(a for a in other["addresses"] if told["address"].split(".")[0] in a)
            await _connected(daemon, address)
    # Two that dialled each other at once over a long way could be in each other's way.
    say(connected=True)
    await _hear_aside()
    clusters = tuple(_cluster(c, cuts, peers) for c, cuts in enumerate(told["cuts"]))
    lo, hi = told["cuts"][cluster][stage : stage + 2]
    params = {f"layer {n}": torch.empty(told["layers"][n]) for n in range(lo, hi)}
    plan = JobPlan(JobId("bench"), GENERATION, clusters)
    rings = RingExchange(
        server, plan, cluster, stage, lambda a, b: [f"layer {n}" for n in range(a, b)], params, {}
    )
    rings.expect()
    nonces = {PeerId(other["peer"]): other["nonce"] for other in peers}

    async def nonce_of(peer: PeerId) -> str:
        return str(nonces[peer])

    await rings.dial(nonce_of)
    gc.freeze()
    say(ready=True)
    count = len(clusters)
    while go := await _hear_aside():
        for tensor in params.values():
            tensor.fill_(2.0**cluster)
        if "dies_after" in go:
            _die_after(go["dies_after"])
        say(filled=True)
        await _hear_aside()
        sent, begun_s = sum(link.bytes_sent for link in rings.links), time.perf_counter()
        lost = await rings.average(go["go"], [1.0] * count, compute)
        took_s = time.perf_counter() - begun_s
        found = torch.cat([*params.values()]).numpy()
        say(
            seconds=took_s,
            sent=sum(link.bytes_sent for link in rings.links) - sent,
            values=np.unique(found.round(DIGITS))[:FEW].tolist(),
            hash=hashlib.sha256(found.tobytes()).hexdigest(),
            lost=[error.peer for error in lost],
        )
    await server.close()
    await daemon.stop()


async def _connected(daemon: P2PDaemon, address: str) -> None:
    """Connect; libp2p does not dial again for some seconds after it has failed."""
    for left in reversed(range(TRIES)):
        try:
            await connect(daemon.p2p, address)
            return
        except PeerUnreachableError:
            if not left:
                raise
            await asyncio.sleep(PAUSE_S)


def _die_after(chunks: int) -> None:
    left, hold = iter(range(chunks)), averaging.SegmentValues.hold

    def held(its: averaging.SegmentValues, chunk: int, mean: averaging.Chunk) -> averaging.Chunk:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return hold(its, chunk, mean)

    averaging.SegmentValues.hold = held  # type: ignore[assignment, method-assign]


async def _hear_aside() -> dict[str, Any]:
    """`hear`, while the event loop goes on."""
    return await asyncio.get_running_loop().run_in_executor(None, hear)


def _cluster(number: int, cuts: list[int], peers: list[dict[str, Any]]) -> ClusterPlan:
    mine = {other["stage"]: other["peer"] for other in peers if other["cluster"] == number}
    return ClusterPlan(
        tuple(
            StageAssignment(PeerId(mine[stage]), lo, hi, 0) for stage, (lo, hi) in enumerate(pairwise(cuts))
        ),
        1,
    )


if __name__ == "__main__":
    main()
