"""What this peer offers the swarm, measured: compute, memory, links, its place in the network.

Compute is timed once, in a child process; links are measured against other peers in turn for as long as the
peer runs, since they change; the network coordinate moves a little with every round trip.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import statistics
import sys
import time
from collections import deque
from collections.abc import Sequence

import psutil

from ravnest_p2p import __version__
from ravnest_p2p.core import coordinates
from ravnest_p2p.core.capability import MAX_MEASURED
from ravnest_p2p.core.errors import OurFault, RavnestError
from ravnest_p2p.core.types import Capability, Device, LinkMeasured, PeerId, Reachability
from ravnest_p2p.daemon.config import DaemonConfig
from ravnest_p2p.daemon.environment import thread_environment
from ravnest_p2p.network.p2pd_waits import bounded
from ravnest_p2p.network.probes import Prober
from ravnest_p2p.training import check_memory

log = logging.getLogger(__name__)

BENCHMARK_TIMEOUT_S = 60.0
FREE_SHARE = 0.5
"""Of the memory that is free at the start, when the owner does not say how much to lend."""
KEPT_MEASUREMENTS = 8
RELIABLE_AFTER_S = 3600.0

REACHABILITY = {"public": Reachability.PUBLIC, "private": Reachability.RELAYED}


async def measure_device(threads: int, name: str) -> Device:
    """The named device of this machine ("auto": the best), timed in a child process of its own.

    Raises:
        OurFault: the benchmark did not end well; its last words are in the message.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "ravnest_p2p.training.benchmark",
        "--json",
        f"--device={name}",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=thread_environment(threads),
    )
    try:
        out, err = await bounded(process.communicate(), BENCHMARK_TIMEOUT_S)
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        raise OurFault(f"the device benchmark failed: {err.decode(errors='replace').strip()[-300:]}")
    found = json.loads(out)
    return Device(found["kind"], int(found["memory_bytes"]), float(found["flops"]))


class Offer:
    """Keeps this peer's capability up to date."""

    def __init__(self, own: PeerId, config: DaemonConfig) -> None:
        self._own = own
        self._config = config
        self._started_s = time.monotonic()
        self._device: Device | None = None
        self._lends = config.lend
        self._up: deque[float] = deque(maxlen=KEPT_MEASUREMENTS)
        self._down: deque[float] = deque(maxlen=KEPT_MEASUREMENTS)
        self._coordinate = coordinates.initial()
        self._probed: deque[PeerId] = deque(maxlen=32)
        self._links: dict[PeerId, LinkMeasured] = {}

    @property
    def memory_bytes(self) -> int:
        """What workers may use; 0 for a peer that lends nothing, or does not know yet how much."""
        if self._device is not None:
            return self._device.memory_bytes
        return self._config.memory_bytes if self._lends else 0

    @property
    def up_bps(self) -> float:
        """What the line carries upwards, as measured with others; 0 before."""
        return statistics.median(self._up) if self._up else 0.0

    @property
    def device(self) -> str:
        """Name of the device that workers compute on, as `--device` takes it."""
        if self._config.device != "auto" or self._device is None:
            return self._config.device
        return self._device.kind

    async def measure(self) -> None:
        """Time the device; a peer that lends nothing has none.

        Raises:
            OurFault, ConfigError: it cannot be measured, or too little of it is lent; then nothing is.
        """
        if not self._lends:
            return
        try:
            self._device = await self._measured()
        except RavnestError:
            self._lends = False
            raise

    async def _measured(self) -> Device:
        device = await measure_device(self._config.threads, self._config.device)
        free_bytes = (
            int(FREE_SHARE * psutil.virtual_memory().available)
            if device.kind == "cpu"
            else device.memory_bytes
        )
        lent_bytes = self._config.memory_bytes or free_bytes
        check_memory(device.kind, lent_bytes)
        log.info(
            "this peer lends %s: %.1f GFLOP/s, %.1f GB", device.kind, device.flops / 1e9, lent_bytes / 1e9
        )
        return Device(device.kind, lent_bytes, device.flops)

    def capability(self, *, online: bool = True) -> Capability:
        """The offer as it stands."""
        uptime_s = time.monotonic() - self._started_s
        return Capability(
            peer=self._own,
            version=__version__,
            devices=(self._device,) if self._device is not None else (),
            up_bps=self.up_bps,
            down_bps=statistics.median(self._down) if self._down else 0.0,
            coordinate=self._coordinate,
            reachability=REACHABILITY.get(self._config.reachability, Reachability.UNKNOWN),
            uptime_s=uptime_s,
            reliability=uptime_s / (uptime_s + RELIABLE_AFTER_S),
            online=online,
            microbatch_flops=self._config.microbatch_flops,
            measured=tuple(self._links.values()),
        )

    async def probe(self, prober: Prober, others: Sequence[Capability]) -> None:
        """Measure the link to one other peer, those not measured lately first.

        Raises:
            RemoteFault: it did not answer, or not as a peer should.
        """
        fresh = [c for c in others if c.peer != self._own and c.peer not in self._probed]
        choice = fresh or [c for c in others if c.peer != self._own]
        if not choice:
            return
        other = random.choice(choice)
        self._probed.append(other.peer)
        measured = await prober.measure(other.peer)
        self._coordinate = coordinates.update(
            self._coordinate, other.coordinate, measured.rtt_s, tie=f"{self._own}{other.peer}"
        )
        self._note_link(LinkMeasured(other.peer, measured.up_bps, measured.down_bps))
        self._up.append(measured.up_bps)
        self._down.append(measured.down_bps)

    def _note_link(self, link: LinkMeasured) -> None:
        """Keep the newest few, one for each peer."""
        self._links.pop(link.peer, None)
        while len(self._links) >= MAX_MEASURED:
            del self._links[next(iter(self._links))]
        self._links[link.peer] = link
