"""Comparing what members ended with, and the last messages of a round."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from ravnest_p2p.core.errors import ChunkMismatchError
from ravnest_p2p.core.rings import (
    DIGEST_BYTES,
    AgreedRound,
    Digests,
    Dispute,
    Formed,
    Grid,
    Outcome,
    Result,
    Ring,
    SegmentRound,
    Star,
    dispute,
    rows,
)


def result(letters: str) -> Digests:
    return tuple(letter.encode() * DIGEST_BYTES for letter in letters)


def told(*results: str) -> dict[int, Digests]:
    return {rank: result(letters) for rank, letters in enumerate(results)}


def test_equal_results_are_no_dispute() -> None:
    assert dispute(told("aaa", "aaa", "aaa"), Ring(3)) is None
    assert dispute(told("a"), Ring(1)) is None


@pytest.mark.parametrize(
    ("results", "differ", "suspects"),
    [
        # Way 0 of a ring of four completes at 3 and goes 3, 0, 1, 2.
        (("aaaa", "baaa", "aaaa", "aaaa"), (1,), (1,)),  # between 0 and it, and between it and 2
        (("aaaa", "baaa", "baaa", "aaaa"), (0, 1, 2, 3), (0, 1)),  # 0 altered it, or 1 did
        (("aaaa", "aaaa", "baaa", "aaaa"), (2,), (1, 2)),  # at the end of the way
        (("baaa", "baaa", "baaa", "aaaa"), (3,), (0, 3)),  # most agree, and may be victims
        (("aaaa", "baaa", "aaaa", "aaba"), (0, 1, 2, 3), (0, 1, 2, 3)),  # more than one is at fault
    ],
)
def test_suspects_of_a_ring_of_four(
    results: tuple[str, ...], differ: tuple[int, ...], suspects: tuple[int, ...]
) -> None:
    assert dispute(told(*results), Ring(4)) == Dispute(differ, suspects)


def test_in_a_star_it_is_between_the_owner_and_who_differs() -> None:
    assert dispute(told("aaa", "baa", "aaa"), Star(3)) == Dispute((1,), (0, 1))
    assert dispute(told("aaa", "bab", "aaa"), Star(3)) == Dispute((1,), (1,))


def test_without_known_ways_anybody_may_be_at_fault() -> None:
    assert dispute(told("aaaa", "baaa", "aaaa", "aaaa"), None) == Dispute((1,), (0, 1, 2, 3))
    many = Grid(400, 20)
    assert rows(many) == 1
    differing = {rank: result("b" if rank == 7 else "a") for rank in range(400)}
    assert dispute(differing, many) == Dispute((7,), tuple(range(400)))


class Written:
    """The arithmetic in writing."""

    def part(self, chunk: int, share: float) -> str:
        return f"{share:g}·{chunk}"

    def add(self, chunk: int, share: float, sums: list[str]) -> str:
        return " + ".join([*sums, self.part(chunk, share)])

    def hold(self, chunk: int, mean: str) -> str:
        return mean


def member(rank: int, size: int) -> tuple[SegmentRound[str], AgreedRound[str]]:
    round_ = SegmentRound(rank, [1] * size, size, Written())
    return round_, AgreedRound(round_, Ring(size), lambda rows_: result("a" * rows_))


def between(agreed: list[AgreedRound[str]]) -> None:
    """Deliver until nothing is underway."""
    busy = True
    while busy:
        busy = False
        for sender, one in enumerate(agreed):
            for rank, other in enumerate(agreed):
                while rank != sender and (message := one.next_for(rank)) is not None:
                    other.arrived(sender, message)
                    busy = True


def test_a_round_ends_with_everybodys_result() -> None:
    agreed = [member(rank, 3)[1] for rank in range(3)]
    assert [one.outcome for one in agreed] == [None] * 3
    between(agreed)
    assert [one.outcome for one in agreed] == [Outcome.MEAN] * 3
    assert [one.dispute for one in agreed] == [None] * 3
    assert not any(one.awaited or one.untold for one in agreed)
    assert [one.next_for(rank) for one in agreed for rank in range(3)] == [None] * 9


def test_a_result_is_the_last_that_a_member_says() -> None:
    _, agreed = member(0, 3)
    agreed.arrived(1, Result(result("aaa")))
    assert agreed.awaits(2)
    assert not agreed.awaits(1)
    with pytest.raises(ChunkMismatchError, match="twice"):
        agreed.arrived(1, Result(result("aaa")))
    with pytest.raises(ChunkMismatchError, match="goes on"):
        agreed.arrived(1, Formed(0b100, frozenset(), frozenset()))


@pytest.mark.parametrize("rows_", [(), result("aa"), result("aaaa"), (b"", b"", b"")])
def test_a_result_of_another_form_is_refused(rows_: Digests) -> None:
    _, agreed = member(0, 3)
    with pytest.raises(ChunkMismatchError):
        agreed.arrived(1, Result(rows_))
    assert agreed.awaits(1)


def test_who_is_over_is_not_waited_for_when_the_rest_form_anew() -> None:
    """2 dies before it has told 0 that all have chunk 2; 1 is over meanwhile, and would say no more."""
    pairs = [member(rank, 3) for rank in range(3)]
    agreed = [pair[1] for pair in pairs]
    busy = True
    while busy:
        busy = False
        for sender, rank in ((0, 1), (0, 2), (1, 2), (2, 1), (1, 0), (2, 0)):
            while (message := agreed[sender].next_for(rank)) is not None:
                busy = True
                if (sender, rank) == (2, 0):
                    if isinstance(message, Result):
                        continue
                    message = replace(message, settled=tuple(set(message.settled) - {2}))
                agreed[rank].arrived(sender, message)
    waiting, its = pairs[0]
    assert waiting.outcome is None
    assert not its.awaits(1)
    its.died(2)
    assert its.next_for(1) == Result(result("aaa")), "and nothing of a formation"
    assert its.outcome is Outcome.MEAN


def test_a_claim_to_hold_what_nobody_can_hold_ends_the_round() -> None:
    """A chunk that only the liar says it has, and that nobody can be given."""
    _, agreed = member(0, 3)
    agreed.arrived(1, Result(result("aaa")))
    with pytest.raises(ChunkMismatchError, match="nobody has kept"):
        agreed.died(2)


def test_where_nobody_trained_what_each_has_is_no_dispute() -> None:
    agreed = [
        AgreedRound(SegmentRound(rank, [0, 0], 2, Written()), Ring(2), partial(_differently, rank))
        for rank in range(2)
    ]
    between(agreed)
    assert [one.outcome for one in agreed] == [Outcome.UNCHANGED] * 2
    assert [one.dispute for one in agreed] == [None] * 2


def _differently(rank: int, rows_: int) -> Digests:
    return result("ab"[rank] * rows_)
