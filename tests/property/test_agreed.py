"""Whatever a hostile member sends, a round refuses it by an error of the remote's, or goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ravnest_p2p.core.errors import ChunkMismatchError
from ravnest_p2p.core.rings import (
    DIGEST_BYTES,
    AgreedRound,
    Dispute,
    Formed,
    Kind,
    Result,
    Ring,
    SegmentRound,
    Send,
    Star,
    Ways,
    dispute,
    ways,
)

SIZE, CHUNKS = 4, 5
numbers = st.integers(-3, CHUNKS + 2)
chunks = st.lists(numbers, max_size=4).map(tuple)
formations = st.integers(-2, 1 << SIZE + 1)
digests = st.lists(st.sampled_from([b"a" * DIGEST_BYTES, b"b" * DIGEST_BYTES, b""]), max_size=SIZE + 1)


class Counted:
    """Arithmetic of chunks whose content is the parts in them."""

    def part(self, chunk: int, share: float) -> int:
        return 1

    def add(self, chunk: int, share: float, sums: list[int]) -> int:
        return sum(sums) + 1

    def hold(self, chunk: int, mean: int) -> int:
        return mean


@st.composite
def messages(draw: st.DrawFn) -> Any:
    match draw(st.integers(0, 3)):
        case 0:
            return Result(tuple(draw(digests)))
        case 1:
            return Result((b"a" * DIGEST_BYTES,) * SIZE)
        case 2:
            held = draw(st.frozensets(numbers))
            return Formed(draw(formations), held, draw(st.sampled_from([held, frozenset()])))
    kind, chunk = draw(st.sampled_from([(None, None), (Kind.SUM, 0), (Kind.MEAN, 0)]))
    if kind is not None:
        chunk = draw(numbers)
    return Send(draw(formations), kind, chunk, None if kind is None else 1, draw(chunks), draw(chunks))


events = st.lists(st.tuples(st.integers(1, SIZE - 1), st.one_of(st.none(), messages())), max_size=30)


@settings(max_examples=500, deadline=None)
@given(events, st.sampled_from([Ring, Star]))
def test_a_hostile_member_is_refused_or_does_nothing_worse(
    heard: list[Any], make: Callable[[int], Ways]
) -> None:
    round_ = SegmentRound(0, [1.0] * SIZE, CHUNKS, Counted(), make)
    agreed = AgreedRound(round_, make(SIZE), lambda rows: (b"a" * DIGEST_BYTES,) * rows)
    for sender, message in heard:
        with contextlib.suppress(ChunkMismatchError):
            if message is None:
                agreed.died(sender)
            else:
                agreed.arrived(sender, message)
        sent = 0
        for rank in range(1, SIZE):
            while agreed.next_for(rank) is not None:
                sent += 1
        assert sent <= 8 * SIZE * CHUNKS
        assert agreed.outcome is None or agreed.dispute is None or agreed.dispute.suspects


@given(st.integers(2, 7), st.sampled_from([Ring, Star, partial(ways, columns=2)]), st.data())
def test_one_member_that_hands_on_what_it_likes_is_always_among_the_suspects(
    size: int, make: Callable[[int], Ways], data: st.DataObject
) -> None:
    """On each way it may give each member another mean, and tell any digest."""
    shape, liar = make(size), data.draw(st.integers(0, size - 1))
    letters = st.sampled_from("abc")
    told: dict[int, list[str]] = {rank: [""] * shape.count for rank in range(size)}

    def spread(way: int, place: int, given: str) -> None:
        told[place][way] = data.draw(letters) if place == liar else given
        for behind in shape.hop(way, place).passes:
            spread(way, behind, data.draw(letters) if place == liar else given)

    for way in range(shape.count):
        owner = next(place for place in range(size) if shape.hop(way, place).source is None)
        spread(way, owner, "a")
    found = dispute({rank: tuple(row.encode() for row in its) for rank, its in told.items()}, shape)
    differs = len({tuple(its) for its in told.values()}) > 1
    assert isinstance(found, Dispute) == differs
    assert found is None or liar in found.suspects
    assert found is None or len(found.suspects) <= 2
