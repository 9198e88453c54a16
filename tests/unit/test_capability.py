"""Capability records: sanity, snapshot hash, similarity."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ravnest_p2p.core.capability import ASSUMED_BPS, checked, dissimilarity, link_bps, snapshot_hash
from ravnest_p2p.core.errors import RecordFormatError
from ravnest_p2p.core.types import Capability, Coordinate, Device, PeerId
from tests.unit.planning_cases import peer

NAN = float("nan")
INF = float("inf")


def test_sane_capability_passes_unchanged() -> None:
    assert checked(peer("a")) == peer("a")


@pytest.mark.parametrize(
    "bad",
    [
        replace(peer("a"), up_bps=-1.0),
        replace(peer("a"), up_bps=NAN),
        replace(peer("a"), down_bps=INF),
        replace(peer("a"), uptime_s=-1.0),
        replace(peer("a"), reliability=1.1),
        replace(peer("a"), reliability=True),
        replace(peer("a"), peer=PeerId("")),
        replace(peer("a"), peer=PeerId("x" * 129)),
        replace(peer("a"), version="v" * 65),
        replace(peer("a"), devices=(Device("abacus", 1, 1.0),)),
        replace(peer("a"), devices=(Device("cpu", -1, 1.0),)),
        replace(peer("a"), devices=(Device("cpu", 1 << 60, 1.0),)),
        replace(peer("a"), devices=(Device("cpu", 1, NAN),)),
        replace(peer("a"), devices=(Device("cpu", 1, 1e30),)),
        replace(peer("a"), devices=(Device("cpu", 1, 1.0),) * 33),
        replace(peer("a"), coordinate=Coordinate((0.0, NAN), 0.0, 0.5)),
        replace(peer("a"), coordinate=Coordinate((0.0, 0.0), 0.0, 0.0)),
    ],
)
def test_nonsense_is_refused(bad: Capability) -> None:
    with pytest.raises(RecordFormatError):
        checked(bad)


def test_snapshot_hash_ignores_order_and_number_types_but_no_value() -> None:
    a, b = peer("a"), peer("b")
    assert snapshot_hash([a, b]) == snapshot_hash([b, a])
    assert snapshot_hash([replace(a, up_bps=100)]) == snapshot_hash([replace(a, up_bps=100.0)])
    assert snapshot_hash([a, b]) != snapshot_hash([a, replace(b, online=False)])
    assert snapshot_hash([a]) != snapshot_hash([a, a])


def test_dissimilarity_is_a_log_ratio() -> None:
    a = peer("a", flops=1e10, bps=1e8)
    assert dissimilarity(a, peer("b", flops=1e10, bps=1e8)) == 0
    assert dissimilarity(a, peer("b", flops=2e10)) == dissimilarity(peer("b", flops=2e10), a) == 1
    assert dissimilarity(a, peer("b", bps=4e8)) == 2


def test_unmeasured_link_is_assumed() -> None:
    assert link_bps(replace(peer("a"), up_bps=0.0)) == ASSUMED_BPS
    assert link_bps(replace(peer("a"), up_bps=5.0, down_bps=0.0)) == 5.0
