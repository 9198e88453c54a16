"""What the owner of a peer decides, in one value."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ravnest_p2p.core.types import MICROBATCH_FLOPS

DEFAULT_SWARM = "ravnest"
DEFAULT_LISTEN = ("/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1")


def default_home() -> Path:
    """`$RAVNEST_HOME`, else `~/.ravnest`: identity, blobs, state and logs of this peer."""
    return Path(os.environ.get("RAVNEST_HOME", "~/.ravnest")).expanduser()


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """Settings of one ravnestd.

    Attributes:
        home: folder of this peer's state; one daemon at a time.
        identity: key file; made on the first start.
        listen: multiaddrs; port 0 takes a free one.
        bootstrap: multiaddrs with /p2p/… of peers to join by; none starts a swarm.
        relays: trusted relays, one multiaddr each.
        memory_bytes: what workers may use; 0 measures half of what is free.
        lend: False makes a peer that serves the DHT and relays but trains nothing.
        threads: torch threads of a worker.
        device: what workers compute on: "auto", "cpu", "cuda", "cuda:1" or "mps".
        microbatch_flops: most operations of one micro-batch, over all stages, of a job to take part in.
        compiler: programs that workers may start to compile their stage; see `daemon.toolchain`.
        direct: workers may connect to one another beside libp2p, where that is possible.
        epoch_s, term_s, grace_s: of the election; must be the same in the whole swarm.
        probe_s: pause between two measurements of links.
        disk_bytes: capacity of the blob store.
    """

    home: Path
    identity: Path
    swarm: str = DEFAULT_SWARM
    listen: tuple[str, ...] = DEFAULT_LISTEN
    announce: tuple[str, ...] = ()
    bootstrap: tuple[str, ...] = ()
    relays: tuple[str, ...] = ()
    reachability: str = "auto"
    memory_bytes: int = 0
    disk_bytes: int = 20 * 1024**3
    lend: bool = True
    threads: int = 1
    device: str = "auto"
    microbatch_flops: float = MICROBATCH_FLOPS
    compiler: tuple[Path, ...] = ()
    direct: bool = True
    relay_service: bool = False
    port_mapping: bool = False
    epoch_s: float = 60.0
    term_s: float = 4.0
    grace_s: float = 3.5
    probe_s: float = 20.0
