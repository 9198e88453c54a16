"""What a peer lends: as much as its owner says, of the device that was measured, or nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ravnest_p2p.core.errors import ConfigError
from ravnest_p2p.core.types import Device, PeerId
from ravnest_p2p.daemon import offer
from ravnest_p2p.daemon.config import DaemonConfig
from ravnest_p2p.daemon.offer import Offer

GPU_BYTES = 8 * 10**9


def an_offer(monkeypatch: pytest.MonkeyPatch, *, memory_bytes: int = 0, lend: bool = True) -> Offer:
    """Of a peer with a GPU."""

    async def measured(threads: int, name: str) -> Device:
        return Device("cuda", GPU_BYTES, 1e13)

    monkeypatch.setattr(offer, "measure_device", measured)
    home = Path("/nowhere")
    return Offer(PeerId("own"), DaemonConfig(home, home, memory_bytes=memory_bytes, lend=lend))


@pytest.mark.parametrize("memory_bytes", [0, 10**9])
def test_who_does_not_lend_has_no_memory_for_workers(
    monkeypatch: pytest.MonkeyPatch, memory_bytes: int
) -> None:
    made = an_offer(monkeypatch, memory_bytes=memory_bytes, lend=False)
    asyncio.run(made.measure())
    assert made.memory_bytes == 0
    assert not made.capability().devices


@pytest.mark.parametrize(("said", "before", "lent"), [(0, 0, GPU_BYTES), (10**9, 10**9, 10**9)])
def test_of_a_gpu_is_lent_what_the_owner_says_or_all(
    monkeypatch: pytest.MonkeyPatch, said: int, before: int, lent: int
) -> None:
    made = an_offer(monkeypatch, memory_bytes=said)
    assert (made.memory_bytes, made.device) == (before, "auto")
    asyncio.run(made.measure())
    assert (made.memory_bytes, made.device) == (lent, "cuda")
    assert made.capability().memory_bytes == lent


def test_too_little_of_a_gpu_is_as_good_as_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = an_offer(monkeypatch, memory_bytes=10**8)
    with pytest.raises(ConfigError, match="lend at least 300 MiB of cuda"):
        asyncio.run(made.measure())
    assert made.memory_bytes == 0
    assert not made.capability().devices
