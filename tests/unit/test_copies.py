"""A job's blobs shared out among peers: enough copies of each, a little for everybody."""

from __future__ import annotations

import pytest

from ravnest_p2p.core.types import BlobHash, PeerId
from ravnest_p2p.daemon.copies import shared_out

BLOBS = [BlobHash(f"{n:064x}") for n in range(400)]
PEERS = [PeerId(f"peer-{n}") for n in range(10)]


@pytest.mark.parametrize(("peers", "copies"), [(10, 2), (10, 3), (2, 2), (1, 2), (0, 2)])
def test_each_blob_has_its_copies(peers: int, copies: int) -> None:
    found = shared_out(BLOBS, PEERS[:peers], copies)
    for blob in BLOBS:
        assert sum(blob in mine for mine in found.values()) == min(peers, copies)
    assert all(list(mine) == [blob for blob in BLOBS if blob in mine] for mine in found.values())


def test_nobody_holds_everything_where_many_could() -> None:
    found = shared_out(BLOBS, PEERS, 2)
    assert found.keys() == set(PEERS)
    assert max(map(len, found.values())) < 2 * 2 * len(BLOBS) / len(PEERS)


def test_the_order_of_the_peers_does_not_matter() -> None:
    found = shared_out(BLOBS, PEERS, 2)
    assert shared_out(BLOBS, PEERS[::-1], 2) == found


def test_a_peer_that_leaves_moves_its_blobs_only() -> None:
    before, after = shared_out(BLOBS, PEERS, 2), shared_out(BLOBS, PEERS[1:], 2)
    assert all(set(before[peer]) <= set(after[peer]) for peer in PEERS[1:])
