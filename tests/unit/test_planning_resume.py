"""Which saved round a job resumes from."""

from __future__ import annotations

from ravnest_p2p.core.planning.resume import ever_saved, missing_layers, resume_point
from tests.unit.planning_cases import piece


def test_newest_round_with_live_cover_wins() -> None:
    pieces = [piece(0, 4, 8, "a"), piece(4, 8, 8, "b"), piece(0, 4, 16, "a"), piece(4, 8, 16, "dead")]
    found = resume_point(pieces, {"a", "b"}, 8)
    assert found is not None
    assert found[0] == 8
    assert [(p.lo, p.hi) for p in found[2]] == [(0, 4), (4, 8)]


def test_pieces_of_differently_cut_clusters_complete_each_other() -> None:
    pieces = [piece(0, 3, 8, "a", version=2), piece(2, 8, 8, "b", version=5)]
    found = resume_point(pieces, {"a", "b"}, 8)
    assert found is not None
    assert found[1] == 5


def test_cover_of_one_version_is_preferred() -> None:
    pieces = [
        piece(0, 6, 8, "a", version=2),
        piece(0, 4, 8, "b", version=3),
        piece(4, 8, 8, "c", version=3),
        piece(6, 8, 8, "d", version=2),
    ]
    found = resume_point(pieces, set("abcd"), 8)
    assert found is not None
    assert found[1] == 3
    assert [p.lo for p in found[2]] == [0, 4]


def test_gap_is_no_cover() -> None:
    pieces = [piece(0, 3, 8, "a"), piece(4, 8, 8, "a")]
    assert resume_point(pieces, {"a"}, 8) is None
    assert not ever_saved(pieces, 8)
    assert missing_layers(pieces, {"a"}, 8, 8) == ([3], [])


def test_bound_from_below() -> None:
    pieces = [piece(0, 8, 8, "a")]
    assert resume_point(pieces, {"a"}, 8, not_before=9) is None
    assert resume_point(pieces, {"a"}, 8, not_before=8) is not None


def test_malformed_pieces_are_passed_over() -> None:
    bad = [
        piece(-1, 8, 8, "a"),
        piece(0, 9, 8, "a"),
        piece(5, 5, 8, "a"),
        piece(0, 8, -4, "a"),
        piece(0, 8, 8),
    ]
    assert resume_point(bad, {"a"}, 8) is None
    assert not ever_saved(bad, 8)


def test_dead_holders_count_as_saved() -> None:
    pieces = [piece(0, 4, 8, "dead"), piece(4, 8, 8, "a")]
    assert ever_saved(pieces, 8)
    assert missing_layers(pieces, {"a"}, 8, 8) == ([0, 1, 2, 3], ["dead"])
    assert ever_saved([piece(0, 4, 8, "a"), piece(0, 4, 16, "a")], 8)
