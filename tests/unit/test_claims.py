"""What a peer claims of its links counts up to what others measured of them."""

from __future__ import annotations

from dataclasses import replace

from ravnest_p2p.core.capability import MAX_MEASURED, checked
from ravnest_p2p.core.claims import SLACK, bounded
from ravnest_p2p.core.types import Capability, LinkMeasured, PeerId
from ravnest_p2p.daemon.config import DaemonConfig
from ravnest_p2p.daemon.offer import Offer
from tests.unit.planning_cases import peer

MBIT = 1e6


def observer(name: str, of: str, up_mbit: float, down_mbit: float, own_mbit: float = 1000.0) -> Capability:
    link = LinkMeasured(PeerId(of), up_mbit * MBIT, down_mbit * MBIT)
    return replace(peer(name, bps=own_mbit * MBIT), measured=(link,))


def lines(*swarm: Capability, of: str = "braggart") -> tuple[float, float]:
    """What counts, Mbit/s up and down."""
    found = bounded({c.peer: c for c in swarm})[PeerId(of)]
    return found.up_bps / MBIT, found.down_bps / MBIT


def test_a_claim_counts_up_to_what_others_measured() -> None:
    braggart = peer("braggart", bps=1e12)
    swarm = (braggart, observer("a", "braggart", 40, 10), observer("b", "braggart", 60, 20))
    assert lines(*swarm) == (20 * SLACK, 60 * SLACK)


def test_who_claims_no_more_than_that_keeps_its_claim() -> None:
    modest = peer("braggart", bps=15 * MBIT)
    swarm = (modest, observer("a", "braggart", 40, 10), observer("b", "braggart", 60, 20))
    assert lines(*swarm) == (15, 15)


def test_one_voice_decides_nothing() -> None:
    assert lines(peer("braggart"), observer("a", "braggart", 1, 1)) == (100, 100)
    swarm = (peer("braggart"), observer("a", "braggart", 1, 1), observer("b", "braggart", 90, 90))
    assert lines(*swarm) == (100, 100)


def test_a_peer_that_repeats_itself_has_one_voice() -> None:
    link = LinkMeasured(PeerId("braggart"), 1.0, 1.0)
    slanderer = replace(peer("a", bps=1e9), measured=(link,) * MAX_MEASURED)
    assert lines(peer("braggart"), slanderer) == (100, 100)


def test_a_narrow_line_says_nothing_of_the_other_end() -> None:
    swarm = (peer("braggart"), *(observer(name, "braggart", 5, 5, own_mbit=6) for name in "abc"))
    assert lines(*swarm) == (100, 100)


def test_nobody_speaks_for_itself() -> None:
    assert lines(observer("braggart", "braggart", 1, 1), observer("a", "braggart", 1, 1)) == (1000, 1000)


def test_what_was_not_measured_yet_stays_so() -> None:
    swarm = (peer("braggart", bps=0.0), observer("a", "braggart", 4, 4), observer("b", "braggart", 4, 4))
    assert lines(*swarm) == (0, 0)


def test_an_offer_shows_the_newest_links_one_for_each_peer(tmp_path) -> None:
    offer = Offer(PeerId("own"), DaemonConfig(home=tmp_path, identity=tmp_path))
    for number in [*range(MAX_MEASURED + 3), 5]:
        offer._note_link(LinkMeasured(PeerId(f"p{number}"), float(number), 1.0))
    shown = [link.peer for link in checked(offer.capability()).measured]
    assert shown == ["p3", "p4", "p6", "p7", "p8", "p9", "p10", "p5"]
