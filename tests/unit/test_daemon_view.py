"""What a peer reads from the directory: who lends, and who has started anew."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from ravnest_p2p.core.types import Capability, Coordinate, Device, PeerId, Reachability
from ravnest_p2p.daemon.jobbook import JobBook
from ravnest_p2p.daemon.view import SwarmView
from ravnest_p2p.network.records import CapabilityRecord, Sealed


class Directory:
    """Holds capability records only."""

    def __init__(self) -> None:
        self.offers: list[Capability] = []

    async def capabilities(self) -> list[Sealed]:
        return [Sealed(CapabilityRecord(offer, 60.0), offer.peer, 0.0, 90.0, b"") for offer in self.offers]


def offer(peer: str, *, uptime_s: float, memory_bytes: int = 1_000_000, online: bool = True) -> Capability:
    return Capability(
        peer=PeerId(peer),
        version="0.1.0",
        devices=(Device("cpu", memory_bytes, 1e9),) if memory_bytes else (),
        up_bps=1e8,
        down_bps=1e8,
        coordinate=Coordinate((0.0, 0.0), 0.001, 0.1),
        reachability=Reachability.PUBLIC,
        uptime_s=uptime_s,
        reliability=0.5,
        online=online,
    )


def test_who_lends_and_who_is_back_after_a_restart_is_known(tmp_path: Path) -> None:
    directory: Any = Directory()
    view = SwarmView(directory, "test", JobBook(tmp_path / "state.json"))

    def read(*offers: Capability) -> frozenset[tuple[PeerId, int]]:
        directory.offers = list(offers)
        asyncio.run(view.read_peers())
        return view.lending

    first = read(offer("a", uptime_s=50), offer("b", uptime_s=60), offer("none", uptime_s=9, memory_bytes=0))
    assert {peer for peer, _ in first} == {"a", "b"}
    assert read(offer("a", uptime_s=80), offer("b", uptime_s=90)) == first
    restarted = read(offer("a", uptime_s=110), offer("b", uptime_s=1))
    assert {peer for peer, _ in restarted - first} == {"b"}
    assert {peer for peer, _ in read(offer("a", uptime_s=111), offer("b", uptime_s=2, online=False))} == {"a"}
